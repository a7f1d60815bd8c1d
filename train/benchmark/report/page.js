// The explorer: one image, what each agent said of it word by word, and where it looked.
// It reads the JSON beside it and writes text only as text, so no caption can be anything else.
"use strict";

(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const explorer = byId("explorer");
  const FEW = 4; // agents shown at first
  const LIKED = ["reinforce", "soft", "hard", "random"];
  const SOME = 4; // references shown at first
  const PACE = 650; // milliseconds a word when playing

  let scene = 0;
  let word = 0;
  let timer = 0;
  let panels = [];
  const shown = first();

  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function vector(tag, attributes) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  }

  // A button that is disabled loses the focus, and the keyboard with it.
  function able(id, is) {
    byId(id).setAttribute("aria-disabled", String(!is));
  }

  // The agents shown at first: a user's own, then the usual ones, then the best of the rest.
  function first() {
    const names = data.agents.map((agent) => agent.name);
    const own = names.filter((name) => name.includes(":") && !/^(soft|hard|shuffled):/.test(name));
    const order = [...own, ...LIKED.filter((name) => names.includes(name)), ...names];
    const few = new Set([...new Set(order)].slice(0, FEW));
    return names.map((name) => few.has(name));
  }

  function steps(said) {
    return said.looks.length;
  }

  function longest() {
    const counts = data.scenes[scene].said.filter((_, i) => shown[i]).map(steps);
    return Math.max(1, ...counts);
  }

  // --- building ---------------------------------------------------------------------------------

  function buildPanel(agent, said) {
    const current = data.scenes[scene];
    const panel = make("article", "panel");
    const header = make("header");
    const title = make("h3", "", agent.title);
    title.title = agent.name;
    const soft = said.looks.some(Array.isArray);
    header.append(title, make("span", "kind", soft ? "soft" : "hard"));

    const view = make("div", current.crisp ? "view crisp" : "view");
    view.style.aspectRatio = `${current.size[0]} / ${current.size[1]}`;
    view.setAttribute("role", "img");
    const picture = make("img");
    picture.src = current.image;
    picture.alt = "";
    view.append(picture);

    const growth = make("div", "growth");
    growth.setAttribute("aria-hidden", "true"); // the figure below says it
    const words = make("div", "words");
    words.setAttribute("role", "group");
    words.setAttribute("aria-label", `Caption by ${agent.title}`);
    const bars = [];
    const buttons = [];
    for (let i = 0; i < steps(said); i += 1) {
      const bar = make("span");
      const fill = make("i");
      fill.style.height = `${100 * bleuAt(said, i)}%`;
      bar.append(fill);
      bar.addEventListener("pointerenter", () => go(i));
      bar.addEventListener("click", () => go(i));
      growth.append(bar);
      bars.push(bar);
      const isEnd = i >= said.words.length;
      const button = make("button", isEnd ? "end" : "", isEnd ? "end" : said.words[i]);
      button.type = "button";
      button.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && go(i));
      button.addEventListener("click", () => go(i));
      button.addEventListener("focus", () => go(i));
      words.append(button);
      buttons.push(button);
    }
    const line = make("div", "now-bleu");
    const now = make("span");
    line.append(now, make("span", "", `ends at ${bleuAt(said, steps(said)).toFixed(3)}`));
    panel.append(header, view, growth, line, words);
    return { agent, said, panel, view, bars, buttons, now, marks: [] };
  }

  function bleuAt(said, step) {
    return said.bleu.length ? said.bleu[Math.min(step, said.bleu.length - 1)] : 0;
  }

  function buildScene() {
    const current = data.scenes[scene];
    panels = data.agents
      .map((agent, i) => (shown[i] ? buildPanel(agent, current.said[i]) : null))
      .filter(Boolean);
    byId("panels").replaceChildren(...panels.map((one) => one.panel));
    const told = current.references.map((text) => make("li", "", text));
    byId("references").replaceChildren(...told.slice(0, SOME));
    const more = byId("more");
    more.hidden = told.length <= SOME;
    more.querySelector("summary").textContent = `${told.length - SOME} more`;
    more.querySelector("ul").replaceChildren(...told.slice(SOME));
    byId("scene").selectedIndex = scene;
    able("scene-back", scene > 0);
    able("scene-on", scene < data.scenes.length - 1);
    word = Math.min(word, longest() - 1);
    update();
  }

  // --- drawing ----------------------------------------------------------------------------------

  function centre(location, columns) {
    return `${(location % columns) + 0.5},${Math.floor(location / columns) + 0.5}`;
  }

  function drawHard(one, location, past) {
    const [rows, columns] = one.agent.grid;
    let spot = one.view.querySelector(".spot");
    if (!spot) {
      spot = make("div", "spot");
      one.view.append(spot);
    }
    spot.style.width = `${100 / columns}%`;
    spot.style.height = `${100 / rows}%`;
    spot.style.left = `${(100 * (location % columns)) / columns}%`;
    spot.style.top = `${(100 * Math.floor(location / columns)) / rows}%`;
    const way = vector("svg", { viewBox: `0 0 ${columns} ${rows}`, preserveAspectRatio: "none" });
    const points = [...past, location].filter((look) => !Array.isArray(look)).map((look) => centre(look, columns));
    way.append(vector("polyline", { class: "way", points: points.join(" ") }));
    one.view.append(way);
    one.marks.push(way);
    return `row ${Math.floor(location / columns) + 1}, column ${(location % columns) + 1}`;
  }

  function drawSoft(one, weights) {
    const [rows, columns] = one.agent.grid;
    const spot = one.view.querySelector(".spot");
    if (spot) spot.remove();
    const canvas = make("canvas", "heat");
    canvas.width = columns;
    canvas.height = rows;
    const pen = canvas.getContext("2d");
    const pixels = pen.createImageData(columns, rows);
    weights.forEach((weight, i) => {
      pixels.data[4 * i + 3] = Math.round(255 * 0.72 * (1 - weight / 100)); // black, thinner where it looks
    });
    pen.putImageData(pixels, 0, 0);
    one.view.append(canvas);
    one.marks.push(canvas);
    if (Math.min(...weights) === 100) return "everywhere alike";
    const best = weights.indexOf(Math.max(...weights));
    return `mostly row ${Math.floor(best / columns) + 1}, column ${(best % columns) + 1}`;
  }

  function update() {
    const told = [];
    for (const one of panels) {
      const step = Math.min(word, steps(one.said) - 1);
      one.marks.forEach((mark) => mark.remove());
      one.marks = [];
      const look = one.said.looks[step];
      let where = "nowhere";
      if (Array.isArray(look)) where = drawSoft(one, look);
      else if (look !== undefined) where = drawHard(one, look, one.said.looks.slice(0, step));
      one.view.setAttribute("aria-label", `${one.agent.title} looks ${where}`);
      one.bars.forEach((bar, i) => {
        bar.className = i === step ? "now" : i < step ? "said" : "";
      });
      one.buttons.forEach((button, i) => {
        button.classList.toggle("ahead", i > step);
        button.tabIndex = i === step ? 0 : -1;
        if (i === step) button.setAttribute("aria-current", "true");
        else button.removeAttribute("aria-current");
      });
      const bleu = bleuAt(one.said, step).toFixed(3);
      one.now.textContent = `BLEU ${bleu}`;
      const spoken = step < one.said.words.length ? `“${one.said.words[step]}”` : "end";
      told.push(`${one.agent.title} says ${spoken}, looks ${where}, BLEU ${bleu}`);
    }
    byId("place").textContent = `Word ${word + 1} of ${longest()}`;
    byId("status").textContent = timer ? "" : told.join("; ");
    able("word-back", word > 0);
    able("word-on", word < longest() - 1);
  }

  // --- moving -----------------------------------------------------------------------------------

  function go(to) {
    const next = Math.max(0, Math.min(to, longest() - 1));
    if (next === word) return;
    word = next;
    update();
  }

  // As go, and the focus moves along when it is on a word.
  function move(by) {
    const holder = panels.find((one) => one.buttons.includes(document.activeElement));
    go(word + by);
    if (holder) holder.buttons[Math.min(word, holder.buttons.length - 1)].focus();
  }

  function show(to) {
    const next = Math.max(0, Math.min(to, data.scenes.length - 1));
    if (next === scene) return;
    const place = panels.findIndex((one) => one.buttons.includes(document.activeElement));
    scene = next;
    word = 0;
    buildScene();
    if (place >= 0) panels[place].buttons[0].focus();
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
    byId("scene").append(...data.scenes.map((one, i) => new Option(`${i + 1}  ${one.name}`, i)));
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
        chip.setAttribute("aria-pressed", String(shown[i]));
        chip.addEventListener("click", () => {
          shown[i] = !shown[i];
          chip.setAttribute("aria-pressed", String(shown[i]));
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
