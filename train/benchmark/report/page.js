// The explorer: one image, each agent's caption of it word by word, and its glimpses.
// It reads the JSON of the page and inserts text as text nodes only, so no caption can become markup.
"use strict";

(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const explorer = byId("explorer");
  const INITIAL_AGENTS = 4;
  const PREFERRED = ["reinforce", "soft", "hard", "random"];
  const INITIAL_REFERENCES = 4; // the others are folded
  const PACE = 650; // milliseconds a word during playback

  let scene = 0;
  let word = 0;
  let timer = 0;
  let panels = [];
  const visible = initialAgents();

  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function makeSvg(tag, attributes) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  }

  // aria-disabled, not disabled: a disabled button loses the keyboard focus.
  function setEnabled(id, enabled) {
    byId(id).setAttribute("aria-disabled", String(!enabled));
  }

  // The agents visible at first: those given by import path, then the preferred ones, then the best of the rest.
  function initialAgents() {
    const names = data.agents.map((agent) => agent.name);
    const imported = names.filter((name) => name.includes(":") && !/^(soft|hard|shuffled):/.test(name));
    const order = [...imported, ...PREFERRED.filter((name) => names.includes(name)), ...names];
    const initial = new Set([...new Set(order)].slice(0, INITIAL_AGENTS));
    return names.map((name) => initial.has(name));
  }

  function steps(caption) {
    return caption.glimpses.length;
  }

  function longest() {
    const counts = data.scenes[scene].captions.filter((_, i) => visible[i]).map(steps);
    return Math.max(1, ...counts);
  }

  // --- building ---------------------------------------------------------------------------------

  function buildPanel(agent, caption) {
    const current = data.scenes[scene];
    const element = make("article", "panel");
    const header = make("header");
    const title = make("h3", "", agent.title);
    title.title = agent.name;
    const soft = caption.glimpses.some(Array.isArray);
    header.append(title, make("span", "kind", soft ? "soft" : "hard"));

    const view = make("div", current.crisp ? "view crisp" : "view");
    view.style.aspectRatio = `${current.size[0]} / ${current.size[1]}`;
    view.setAttribute("role", "img");
    const picture = make("img");
    picture.src = current.image;
    picture.alt = "";
    view.append(picture);

    const growth = make("div", "growth");
    growth.setAttribute("aria-hidden", "true"); // the figure below has the value
    const words = make("div", "words");
    words.setAttribute("role", "group");
    words.setAttribute("aria-label", `Caption by ${agent.title}`);
    const bars = [];
    const buttons = [];
    for (let i = 0; i < steps(caption); i += 1) {
      const bar = make("span");
      const fill = make("i");
      fill.style.height = `${100 * bleuAt(caption, i)}%`;
      bar.append(fill);
      bar.addEventListener("pointerenter", () => go(i));
      bar.addEventListener("click", () => go(i));
      growth.append(bar);
      bars.push(bar);
      const isEnd = i >= caption.words.length;
      const button = make("button", isEnd ? "end" : "", isEnd ? "end" : caption.words[i]);
      button.type = "button";
      button.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && go(i));
      button.addEventListener("click", () => go(i));
      button.addEventListener("focus", () => go(i));
      words.append(button);
      buttons.push(button);
    }
    const line = make("div", "now-bleu");
    const bleu = make("span");
    line.append(bleu, make("span", "", `ends at ${bleuAt(caption, steps(caption)).toFixed(3)}`));
    element.append(header, view, growth, line, words);
    return { agent, caption, element, view, bars, buttons, bleu, marks: [] };
  }

  function bleuAt(caption, step) {
    return caption.bleu.length ? caption.bleu[Math.min(step, caption.bleu.length - 1)] : 0;
  }

  function buildScene() {
    const current = data.scenes[scene];
    panels = data.agents
      .map((agent, i) => (visible[i] ? buildPanel(agent, current.captions[i]) : null))
      .filter(Boolean);
    byId("panels").replaceChildren(...panels.map((panel) => panel.element));
    const references = current.references.map((text) => make("li", "", text));
    byId("references").replaceChildren(...references.slice(0, INITIAL_REFERENCES));
    const more = byId("more");
    more.hidden = references.length <= INITIAL_REFERENCES;
    more.querySelector("summary").textContent = `${references.length - INITIAL_REFERENCES} more`;
    more.querySelector("ul").replaceChildren(...references.slice(INITIAL_REFERENCES));
    byId("scene").selectedIndex = scene;
    setEnabled("scene-back", scene > 0);
    setEnabled("scene-on", scene < data.scenes.length - 1);
    word = Math.min(word, longest() - 1);
    update();
  }

  // --- drawing ----------------------------------------------------------------------------------

  function centre(location, columns) {
    return `${(location % columns) + 0.5},${Math.floor(location / columns) + 0.5}`;
  }

  function drawHard(panel, location, past) {
    const [rows, columns] = panel.agent.grid;
    let spot = panel.view.querySelector(".spot");
    if (!spot) {
      spot = make("div", "spot");
      panel.view.append(spot);
    }
    spot.style.width = `${100 / columns}%`;
    spot.style.height = `${100 / rows}%`;
    spot.style.left = `${(100 * (location % columns)) / columns}%`;
    spot.style.top = `${(100 * Math.floor(location / columns)) / rows}%`;
    const path = makeSvg("svg", { viewBox: `0 0 ${columns} ${rows}`, preserveAspectRatio: "none" });
    const points = [...past, location].filter((glimpse) => !Array.isArray(glimpse)).map((glimpse) => centre(glimpse, columns));
    path.append(makeSvg("polyline", { class: "way", points: points.join(" ") }));
    panel.view.append(path);
    panel.marks.push(path);
    return `row ${Math.floor(location / columns) + 1}, column ${(location % columns) + 1}`;
  }

  function drawSoft(panel, weights) {
    const [rows, columns] = panel.agent.grid;
    const spot = panel.view.querySelector(".spot");
    if (spot) spot.remove();
    const canvas = make("canvas", "heat");
    canvas.width = columns;
    canvas.height = rows;
    const pen = canvas.getContext("2d");
    const pixels = pen.createImageData(columns, rows);
    weights.forEach((weight, i) => {
      pixels.data[4 * i + 3] = Math.round(255 * 0.72 * (1 - weight / 100)); // black, more transparent where the weight is larger
    });
    pen.putImageData(pixels, 0, 0);
    panel.view.append(canvas);
    panel.marks.push(canvas);
    if (Math.min(...weights) === 100) return "everywhere alike";
    const best = weights.indexOf(Math.max(...weights));
    return `mostly row ${Math.floor(best / columns) + 1}, column ${(best % columns) + 1}`;
  }

  function update() {
    const sentences = [];
    for (const panel of panels) {
      const step = Math.min(word, steps(panel.caption) - 1);
      panel.marks.forEach((mark) => mark.remove());
      panel.marks = [];
      const glimpse = panel.caption.glimpses[step];
      let where = "nowhere";
      if (Array.isArray(glimpse)) where = drawSoft(panel, glimpse);
      else if (glimpse !== undefined) where = drawHard(panel, glimpse, panel.caption.glimpses.slice(0, step));
      panel.view.setAttribute("aria-label", `${panel.agent.title} looks ${where}`);
      panel.bars.forEach((bar, i) => {
        bar.className = i === step ? "now" : i < step ? "said" : "";
      });
      panel.buttons.forEach((button, i) => {
        button.classList.toggle("ahead", i > step);
        button.tabIndex = i === step ? 0 : -1;
        if (i === step) button.setAttribute("aria-current", "true");
        else button.removeAttribute("aria-current");
      });
      const bleu = bleuAt(panel.caption, step).toFixed(3);
      panel.bleu.textContent = `BLEU ${bleu}`;
      const current = step < panel.caption.words.length ? `“${panel.caption.words[step]}”` : "end";
      sentences.push(`${panel.agent.title} says ${current}, looks ${where}, BLEU ${bleu}`);
    }
    byId("place").textContent = `Word ${word + 1} of ${longest()}`;
    byId("status").textContent = timer ? "" : sentences.join("; ");
    setEnabled("word-back", word > 0);
    setEnabled("word-on", word < longest() - 1);
  }

  // --- moving -----------------------------------------------------------------------------------

  function go(to) {
    const next = Math.max(0, Math.min(to, longest() - 1));
    if (next === word) return;
    word = next;
    update();
  }

  // As go; a focus that is on a word moves along.
  function move(by) {
    const holder = panels.find((panel) => panel.buttons.includes(document.activeElement));
    go(word + by);
    if (holder) holder.buttons[Math.min(word, holder.buttons.length - 1)].focus();
  }

  function show(to) {
    const next = Math.max(0, Math.min(to, data.scenes.length - 1));
    if (next === scene) return;
    const focused = panels.findIndex((panel) => panel.buttons.includes(document.activeElement));
    scene = next;
    word = 0;
    buildScene();
    if (focused >= 0) panels[focused].buttons[0].focus();
  }

  function play(on) {
    clearInterval(timer);
    timer = 0;
    if (on) {
      if (word === longest() - 1) go(0);
      timer = setInterval(() => (word === longest() - 1 ? play(false) : go(word + 1)), PACE);
    }
    byId("play").setAttribute("aria-pressed", String(on));
    byId("play").textContent = on ? "Pause" : "Play";
    update();
  }

  function key(event) {
    if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    const inside = explorer.contains(document.activeElement);
    if (document.activeElement instanceof HTMLSelectElement) return;
    const table = document.activeElement && document.activeElement.classList.contains("scroll");
    const moves = {
      ArrowLeft: () => move(-1),
      ArrowRight: () => move(1),
      n: () => show(scene + 1),
      p: () => show(scene - 1),
    };
    if (inside) {
      moves.ArrowUp = () => show(scene - 1);
      moves.ArrowDown = () => show(scene + 1);
    }
    if (table || !Object.hasOwn(moves, event.key)) return;
    event.preventDefault();
    moves[event.key]();
  }

  function start() {
    if (!data.scenes.length) {
      explorer.hidden = true;
      return;
    }
    byId("scene").append(...data.scenes.map((entry, i) => new Option(`${i + 1}  ${entry.name}`, i)));
    byId("scene").addEventListener("change", (event) => show(event.target.selectedIndex));
    byId("scene-back").addEventListener("click", () => show(scene - 1));
    byId("scene-on").addEventListener("click", () => show(scene + 1));
    byId("word-back").addEventListener("click", () => go(word - 1));
    byId("word-on").addEventListener("click", () => go(word + 1));
    byId("play").addEventListener("click", () => play(!timer));
    byId("chips").append(
      ...data.agents.map((agent, i) => {
        const chip = make("button", "", agent.title);
        chip.title = agent.name;
        chip.type = "button";
        chip.setAttribute("aria-pressed", String(visible[i]));
        chip.addEventListener("click", () => {
          visible[i] = !visible[i];
          chip.setAttribute("aria-pressed", String(visible[i]));
          buildScene();
        });
        return chip;
      }),
    );
    document.addEventListener("keydown", key);
    buildScene();
  }

  start();
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
})();
