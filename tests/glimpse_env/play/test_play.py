"""Play by hand: events become glimpses, the caption is the environment's, and the table tells who earned what."""

from __future__ import annotations

import json
import sys
from importlib.resources import files

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import DependencyNotInstalled

import glimpse_env  # noqa: F401 (registers the ids)
from agents.loading import find_agent
from glimpse_env.play.game import KEYS, PATHS, Game, main, play
from glimpse_env.play.leaderboard import Standings, load_standings
from glimpse_env.play.scoreboard import Row, render_board
from glimpse_env.registration import IDS
from glimpse_env.rendering.drawing import ACCENT, PAPER
from glimpse_env.rendering.window import Window

STEPS = 3
TOLD = Standings({"hard": [0.25, 0.5], "oracle": [1.0, 0.75]}, ["shapes-test-0", "shapes-test-1"])


def make_env(captioner_file, **options):
    options = {"split": "test", "captioner": str(captioner_file), "max_caption_length": STEPS, **options}
    return gym.make("Glimpse/Shapes-v0", render_mode="rgb_array", **options).unwrapped


@pytest.fixture
def game(captioner_file):
    made = Game(make_env(captioner_file), TOLD, seed=0)
    made.next(1)
    return made


def send(pygame, game, *events):
    """Play with events and quit; the window's frame at the end."""
    window = Window(fps=0)
    window.show(game.frame())
    for event in (*events, pygame.event.Event(pygame.KEYDOWN, key=pygame.K_q)):
        pygame.event.post(event)
    play(game, window)
    window.close()


def key(pygame, name):
    return pygame.event.Event(pygame.KEYDOWN, key=getattr(pygame, f"K_{name}"))


def middle(game, location):
    side = game.size / 7
    return int((location % 7 + 0.5) * side), int((location // 7 + 0.5) * side)


def test_clicks_are_glimpses(pygame, game, captioner_file, capsys):
    places = [3, 40, 48]
    click = [pygame.event.Event(pygame.MOUSEBUTTONDOWN, button=1, pos=middle(game, place)) for place in places]
    right = pygame.event.Event(pygame.MOUSEBUTTONDOWN, button=3, pos=middle(game, 0))
    beside = pygame.event.Event(pygame.MOUSEBUTTONDOWN, button=1, pos=(game.size + 5, 10))
    below = pygame.event.Event(pygame.MOUSEBUTTONDOWN, button=1, pos=(10, game.size + 5))
    send(pygame, game, right, beside, below, *click, click[0])
    twin = make_env(captioner_file)
    twin.reset(options={"image": 1})
    for place in places:
        _, reward, ended, _, info = twin.step(place)
    assert ended
    assert game.ended
    assert game.info["caption"] == info["caption"]
    assert game.reward == reward
    assert capsys.readouterr().out == game.report() + "\n"
    assert info["caption"] in game.report()


def test_keys_move_the_cursor_and_look(pygame, game):
    assert game.cursor == 24
    keys = [key(pygame, name) for name in ("UP", "LEFT", "LEFT", "SPACE", "DOWN", "RETURN")]
    send(pygame, game, *keys)
    assert game.cursor == 22
    assert [int(one.argmax()) for one in game.env.get_state()["glimpses"]] == [15, 22]
    assert not game.ended


def test_the_cursor_stops_at_the_edges_and_follows_the_mouse(pygame, game):
    send(pygame, game, *[key(pygame, "UP")] * 9, *[key(pygame, "RIGHT")] * 9)
    assert game.cursor == 6
    send(pygame, game, pygame.event.Event(pygame.MOUSEMOTION, pos=middle(game, 30), rel=(0, 0), buttons=(0, 0, 0)))
    assert game.cursor == 30
    send(pygame, game, pygame.event.Event(pygame.MOUSEMOTION, pos=(game.size, 0), rel=(0, 0), buttons=(0, 0, 0)))
    assert game.cursor == 30


def test_again_and_next(pygame, game):
    look = key(pygame, "SPACE")
    send(pygame, game, look, look, key(pygame, "r"))
    assert (game.env.row, game.env.get_state()["glimpses"]) == (1, [])
    rows = set()
    for _ in range(12):
        send(pygame, game, look, key(pygame, "n"))
        rows.add(game.env.row)
    assert rows == {0, 1}  # those with standings


@pytest.mark.parametrize("how", ["QUIT", "ESCAPE"])
def test_the_window_can_be_closed(pygame, game, how):
    event = pygame.event.Event(pygame.QUIT) if how == "QUIT" else key(pygame, how)
    send(pygame, game, event, key(pygame, "SPACE"))
    assert game.env.get_state()["glimpses"] == []


def test_the_table_tells_who_earned_what(game):
    assert game.table() == []
    for place in (1, 2, 3):
        game.look(place)
    names = [row.name for row in game.table()]
    assert set(names) == {"you", "hard", "oracle", f"random, best of {PATHS}", f"random, mean of {PATHS}"}
    earned = {row.name: row.reward for row in game.table()}
    assert earned["hard"] == 0.5
    assert earned["you"] == game.reward
    assert list(earned.values()) == sorted(earned.values(), reverse=True)
    assert 0 <= earned[f"random, mean of {PATHS}"] <= earned[f"random, best of {PATHS}"] <= 1
    assert [row.own for row in game.table()] == [name == "you" for name in names]


def test_an_image_without_standings_is_compared_with_random_paths(captioner_file):
    game = Game(make_env(captioner_file), TOLD)
    game.next(2)
    assert set(game.others) == {f"random, best of {PATHS}", f"random, mean of {PATHS}"}


def test_the_frame_shows_the_cursor_until_the_caption_is_complete(game):
    def boxed(location):
        x, y = middle(game, location)
        edge = game.frame()[y, x - game.size // 14 : x - game.size // 14 + 3]
        return bool((edge == PAPER).all(-1).any())

    assert boxed(24)
    game.move(1, 1)
    assert boxed(32)
    assert not boxed(24)
    shape = game.frame().shape
    for place in (1, 2, 3):
        game.look(place)
    assert not any(boxed(place) for place in range(49))
    assert game.frame().shape == shape


def test_the_board_draws_the_best_bar_longest():
    table = [Row("oracle", 1.0), Row("you", 0.5, own=True), Row("random", -0.1)]
    board = np.asarray(render_board("scene", table, "people say " * 40, KEYS, width=300, height=600))
    assert board.shape == (600, 300, 3)
    own = (board == ACCENT).all(-1).sum(axis=1).max()
    assert own == pytest.approx((300 - 2 * (300 // 21)) / 2, abs=2)


def test_only_hard_environments_that_make_frames_can_be_played(captioner_file):
    with pytest.raises(ValueError, match="one location a word"):
        Game(make_env(captioner_file, attention="soft"), TOLD)


def test_the_command_plays_and_ends(pygame, monkeypatch, captioner_file, capsys):
    def player(game, window):
        window.show(game.frame())
        while not game.ended:
            game.look()
        window.show(game.frame())
        print(game.report())

    monkeypatch.setattr("glimpse_env.play.game.play", player)
    main(["--image", "5", "--captioner", str(captioner_file)])
    shown = capsys.readouterr().out
    assert shown.startswith("shapes-test-5: ")
    assert "oracle" not in shown  # those numbers are another captioner's
    assert not pygame.display.get_init()


def test_without_pygame_the_cure_is_told(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(DependencyNotInstalled, match=r"pip install 'glimpse-env\[play\]'"):
        Window()
    assert refused(capsys, []) == "pygame is not installed; pip install 'glimpse-env[play]'"


def test_without_a_screen_the_cure_is_told(pygame, monkeypatch, captioner_file, capsys):
    monkeypatch.setenv("SDL_VIDEODRIVER", "no-such-screen")
    pygame.display.quit()
    said = refused(capsys, ["--captioner", str(captioner_file)])
    assert said.startswith("no window can be opened here (")
    assert said.endswith("or set SDL_VIDEODRIVER=dummy")


def test_a_window_that_nobody_sees_is_none_unless_asked_for(pygame, monkeypatch):
    pygame.display.quit()
    monkeypatch.delenv("SDL_VIDEODRIVER")
    monkeypatch.setattr(pygame.display, "get_driver", lambda: "offscreen")
    with pytest.raises(OSError, match="no screen was found"):
        Window().show(np.zeros((4, 4, 3), np.uint8))
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    Window().show(np.zeros((4, 4, 3), np.uint8))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--seed", "-1"], "seed must be at least 0, got -1"),
        (["--image", "1000"], "image 1000 does not exist"),
        (["--captioner", "nobody"], "no captioner 'nobody'"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(pygame, captioner_file, capsys, asked, said):
    assert refused(capsys, ["--captioner", str(captioner_file), *asked]).startswith(said)


def refused(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err.split(" error: ", 1)[1].strip()


# --- the standings that come with the package -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "split", "agents"),
    [
        ("shapes", "test", {"oracle", "soft", "hard", "reinforce", "ppo", "no-attention", "random", "center"}),
        ("shapes-large", "test", {"oracle", "soft", "reinforce", "random", "center"}),
        ("flickr8k", "val", {"soft", "hard", "reinforce", "self-critical", "random", "center"}),
    ],
)
def test_ids_come_with_standings(dataset, split, agents):
    told = load_standings(dataset, split)
    assert agents <= set(told.rewards)
    assert len(set(told.images)) == len(told.images) >= 100
    assert {len(earned) for earned in told.rewards.values()} == {len(told.images)}
    assert all(0 <= reward <= 1 for earned in told.rewards.values() for reward in earned)
    assert load_standings(dataset, "train") == Standings({}, [])


def test_standings_of_photographs_hold_ids_and_figures_alone(flickr8k_root):
    file = files("glimpse_env") / "assets" / "flickr8k-val-standings.json"
    assert set(json.loads(file.read_text())) == {"command", "images", "rewards"}
    env = gym.make("Glimpse/Flickr8k-v0", split="val", render_mode="rgb_array", data_root=flickr8k_root).unwrapped
    told = load_standings("flickr8k", "val")
    assert {*told.images} <= {env.dataset.image_id(row) for row in range(len(env.dataset))}
    game = Game(env, told)
    game.next()
    assert {"hard", "self-critical"} <= set(game.others)


@pytest.mark.parametrize(
    ("dataset", "name"), [("shapes", "hard"), ("shapes", "oracle"), ("shapes-large", "reinforce"), ("flickr8k", "hard")]
)
def test_the_standings_are_what_the_shipped_agents_earn(dataset, name, request):
    """When it fails, shipped weights have changed: run the commands of ``train.standings`` in ``make weights``."""
    photographs = dataset == "flickr8k"
    root = request.getfixturevalue("flickr8k_root") if photographs else None
    split = "val" if photographs else "test"
    env_id = next(one for one, short in IDS.items() if short == dataset)
    env = gym.make(env_id, split=split, data_root=root, disable_env_checker=True).unwrapped
    agent = find_agent(name, dataset).make(env, 0)
    for row in (0, 1, 2):
        observation, _ = env.reset(options={"image": row})
        ended, state = False, None
        while not ended:
            action, state = agent.predict(observation, state, deterministic=True)
            observation, reward, ended, _, _ = env.step(action)
        earned = load_standings(dataset, split).of(env.dataset.image_id(row))[name]
        assert earned == pytest.approx(reward, abs=2e-3)


def test_the_command_writes_standings(tmp_path, monkeypatch):
    from train import standings

    monkeypatch.setattr(standings, "shipped_agents", lambda dataset: ["hard", "random", "raster"])
    standings.main(standings.Options(limit=3, out=tmp_path / "told.json"))
    told = json.loads((tmp_path / "told.json").read_text())
    assert set(told["rewards"]) == {"hard", "random"}
    assert told["images"] == ["shapes-test-0", "shapes-test-1", "shapes-test-2"]
    assert told["rewards"]["hard"] == load_standings("shapes", "test").rewards["hard"][:3]


def test_rows_with_standings_are_found_by_name(captioner_file):
    """The same photographs have other rows in another layout of their dataset."""
    game = Game(make_env(captioner_file), Standings({"hard": [0.5, 0.25]}, ["shapes-test-70", "shapes-test-4"]))
    found = {}
    for _ in range(12):
        game.next()
        found[game.env.row] = game.others["hard"]
    assert found == {70: 0.5, 4: 0.25}
