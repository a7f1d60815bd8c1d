"""Play by hand: events become glimpses, the caption is the environment's, the scoreboard ranks player and agents."""

from __future__ import annotations

import json
import sys
from importlib.resources import files

import gymnasium as gym
import numpy as np
import pytest

import glimpse_env  # noqa: F401 (registers the ids)
from agents.loading import find_agent
from glimpse_env.models.captioner import save_captioner
from glimpse_env.models.encoders.cnn import EncoderConfig
from glimpse_env.play.game import KEYS, RANDOM_EPISODES, Game, main, play
from glimpse_env.play.leaderboard import Leaderboard, load_leaderboard
from glimpse_env.play.scoreboard import Row, render_scoreboard
from glimpse_env.rendering.drawing import ACCENT, PAPER
from glimpse_env.rendering.frames import PICTURE_WIDTH
from glimpse_env.rendering.window import Window
from tests.conftest import FEATURES, IDS, build_captioner
from tests.toy_world import COLOURS, STRIPS

STEPS = 3
SIDE = PICTURE_WIDTH  # of the picture, which is square in all worlds of today
LEADERBOARD = Leaderboard({"hard": [0.25, 0.5], "oracle": [1.0, 0.75]}, ["shapes-test-0", "shapes-test-1"])


def make_env(captioner_file, **options):
    options = {"split": "test", "captioner": str(captioner_file), "max_caption_length": STEPS, **options}
    return gym.make("Glimpse/Shapes-v0", render_mode="rgb_array", **options).unwrapped


@pytest.fixture
def game(captioner_file):
    game = Game(make_env(captioner_file), LEADERBOARD, seed=0)
    game.next_image(1)
    return game


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


def center(location):
    return int((location % 7 + 0.5) * SIDE / 7), int((location // 7 + 0.5) * SIDE / 7)


def test_clicks_are_glimpses(pygame, game, captioner_file, capsys):
    locations = [3, 40, 48]
    clicks = [pygame.event.Event(pygame.MOUSEBUTTONDOWN, button=1, pos=center(i)) for i in locations]
    right = pygame.event.Event(pygame.MOUSEBUTTONDOWN, button=3, pos=center(0))
    outside = pygame.event.Event(pygame.MOUSEBUTTONDOWN, button=1, pos=(SIDE + 5, 10))
    below = pygame.event.Event(pygame.MOUSEBUTTONDOWN, button=1, pos=(10, SIDE + 5))
    send(pygame, game, right, outside, below, *clicks, clicks[0])
    twin = make_env(captioner_file)
    twin.reset(options={"image": 1})
    for location in locations:
        _, reward, ended, _, info = twin.step(location)
    assert ended
    assert game.ended
    assert game.info["caption"] == info["caption"]
    assert game.reward == reward
    assert capsys.readouterr().out == game.report() + "\n"
    assert info["caption"] in game.report()


def test_keys_move_the_cursor_and_glimpse(pygame, game):
    assert game.cursor == 24
    keys = [key(pygame, name) for name in ("UP", "LEFT", "LEFT", "SPACE", "DOWN", "RETURN")]
    send(pygame, game, *keys)
    assert game.cursor == 22
    assert [int(glimpse.argmax()) for glimpse in game.env.get_state()["glimpses"]] == [15, 22]
    assert not game.ended


def test_the_cursor_stops_at_the_edges_and_follows_the_mouse(pygame, game):
    send(pygame, game, *[key(pygame, "UP")] * 9, *[key(pygame, "RIGHT")] * 9)
    assert game.cursor == 6
    send(pygame, game, pygame.event.Event(pygame.MOUSEMOTION, pos=center(30), rel=(0, 0), buttons=(0, 0, 0)))
    assert game.cursor == 30
    send(pygame, game, pygame.event.Event(pygame.MOUSEMOTION, pos=(SIDE, 0), rel=(0, 0), buttons=(0, 0, 0)))
    assert game.cursor == 30


def test_restart_and_next_image(pygame, game):
    look = key(pygame, "SPACE")
    send(pygame, game, look, look, key(pygame, "r"))
    assert (game.env.row, game.env.get_state()["glimpses"]) == (1, [])
    rows = set()
    for _ in range(12):
        send(pygame, game, look, key(pygame, "n"))
        rows.add(game.env.row)
    assert rows == {0, 1}  # those on the leaderboard


@pytest.mark.parametrize("how", ["QUIT", "ESCAPE"])
def test_the_window_can_be_closed(pygame, game, how):
    event = pygame.event.Event(pygame.QUIT) if how == "QUIT" else key(pygame, how)
    send(pygame, game, event, key(pygame, "SPACE"))
    assert game.env.get_state()["glimpses"] == []


def test_scores_rank_the_player_among_agents(game):
    assert game.scores() == []
    for location in (1, 2, 3):
        game.glimpse(location)
    names = [row.name for row in game.scores()]
    assert set(names) == {
        "you",
        "hard",
        "oracle",
        f"random, best of {RANDOM_EPISODES}",
        f"random, mean of {RANDOM_EPISODES}",
    }
    rewards = {row.name: row.reward for row in game.scores()}
    assert rewards["hard"] == 0.5
    assert rewards["you"] == game.reward
    assert list(rewards.values()) == sorted(rewards.values(), reverse=True)
    random = f"random, mean of {RANDOM_EPISODES}", f"random, best of {RANDOM_EPISODES}"
    assert 0 <= rewards[random[0]] <= rewards[random[1]] <= 1
    assert [row.is_player for row in game.scores()] == [name == "you" for name in names]


def test_an_image_off_the_leaderboard_is_compared_with_random_agents(captioner_file):
    game = Game(make_env(captioner_file), LEADERBOARD)
    game.next_image(2)
    assert set(game.agent_rewards) == {f"random, best of {RANDOM_EPISODES}", f"random, mean of {RANDOM_EPISODES}"}


def test_the_frame_shows_the_cursor_until_the_caption_is_complete(game):
    def boxed(location):
        x, y = center(location)
        edge = game.frame()[y, x - SIDE // 14 : x - SIDE // 14 + 3]
        return bool((edge == PAPER).all(-1).any())

    assert boxed(24)
    game.move(1, 1)
    assert boxed(32)
    assert not boxed(24)
    shape = game.frame().shape
    for location in (1, 2, 3):
        game.glimpse(location)
    assert not any(boxed(location) for location in range(49))
    assert game.frame().shape == shape


def test_the_scoreboard_draws_the_players_bar():
    rows = [Row("oracle", 1.0), Row("you", 0.5, is_player=True), Row("random", -0.1)]
    panel = np.asarray(render_scoreboard("scene", rows, "people say " * 40, KEYS, width=300, height=600))
    assert panel.shape == (600, 300, 3)
    bar = (panel == ACCENT).all(-1).sum(axis=1).max()
    assert bar == pytest.approx((300 - 2 * (300 // 21)) / 2, abs=2)


def test_only_hard_environments_that_make_frames_can_be_played(captioner_file):
    with pytest.raises(ValueError, match="one location a word"):
        Game(make_env(captioner_file, attention="soft"), LEADERBOARD)


@pytest.fixture(scope="module")
def strips_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("strips") / "captioner.safetensors"
    sees = EncoderConfig(image_size=STRIPS.image_size, grid=STRIPS.grid.shape, feature_dim=FEATURES)
    save_captioner(build_captioner(words=tuple(COLOURS), sees=sees, dataset=STRIPS.name), path)
    return path


def test_locations_that_an_image_lacks_are_not_looked_at(strips_file):
    env = gym.make(STRIPS.env_id, render_mode="rgb_array", captioner=strips_file).unwrapped
    row = next(row for row in range(len(env.dataset)) if env.dataset.location_mask(row).sum() == 5)
    game = Game(env, Leaderboard({}, []))
    game.next_image(row)
    game.glimpse(7)
    assert env.get_state()["glimpses"] == []
    game.glimpse(4)
    assert len(env.get_state()["glimpses"]) == 1


def test_the_command_plays_worlds_of_other_packages(pygame, monkeypatch, strips_file, capsys):
    monkeypatch.setattr("glimpse_env.play.game.play", lambda game, _: print(game.env.dataset.image_id(game.env.row)))
    main(["--env", f"tests.toy_world:{STRIPS.env_id}", "--captioner", str(strips_file), "--image", "3"])
    assert capsys.readouterr().out == "strip-test-3\n"
    assert refused(capsys, ["--env", "no_such_module:Glimpse/X-v0"]).startswith("no module 'no_such_module'")
    assert refused(capsys, ["--env", "Glimpse/X-v0"]).startswith("unknown environment 'Glimpse/X-v0'; expected one of")


def test_the_command_plays_and_ends(pygame, monkeypatch, captioner_file, capsys):
    def player(game, window):
        window.show(game.frame())
        while not game.ended:
            game.glimpse()
        window.show(game.frame())
        print(game.report())

    monkeypatch.setattr("glimpse_env.play.game.play", player)
    main(["--image", "5", "--captioner", str(captioner_file)])
    output = capsys.readouterr().out
    assert output.startswith("shapes-test-5: ")
    assert "oracle" not in output  # the leaderboard is of another captioner
    assert not pygame.display.get_init()


def test_without_pygame_the_message_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pygame", None)
    assert refused(capsys, []) == "pygame is not installed; pip install 'glimpse-env[play]'"


def test_without_a_screen_the_message_says_what_to_do(pygame, monkeypatch, captioner_file, capsys):
    monkeypatch.setenv("SDL_VIDEODRIVER", "no-such-screen")
    pygame.display.quit()
    message = refused(capsys, ["--captioner", str(captioner_file)])
    assert message.startswith("no window can be opened here (")
    assert message.endswith("or set SDL_VIDEODRIVER=dummy")


def test_an_offscreen_driver_is_refused_unless_chosen(pygame, monkeypatch):
    pygame.display.quit()
    monkeypatch.delenv("SDL_VIDEODRIVER")
    monkeypatch.setattr(pygame.display, "get_driver", lambda: "offscreen")
    with pytest.raises(OSError, match="no screen was found"):
        Window().show(np.zeros((4, 4, 3), np.uint8))
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    Window().show(np.zeros((4, 4, 3), np.uint8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "-1"], "seed must be at least 0, got -1"),
        (["--image", "1000"], "image 1000 does not exist"),
        (["--captioner", "nobody"], "no captioner 'nobody'"),
    ],
)
def test_wrong_arguments_are_named(pygame, captioner_file, capsys, arguments, message):
    assert refused(capsys, ["--captioner", str(captioner_file), *arguments]).startswith(message)


def refused(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err.split(" error: ", 1)[1].strip()


# --- the leaderboards of the package ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "split", "agents"),
    [
        ("shapes", "test", {"oracle", "soft", "hard", "reinforce", "ppo", "no-attention", "random", "center"}),
        ("shapes-large", "test", {"oracle", "soft", "reinforce", "random", "center"}),
        ("flickr8k", "val", {"soft", "hard", "reinforce", "self-critical", "random", "center"}),
    ],
)
def test_ids_have_leaderboards(dataset, split, agents):
    leaderboard = load_leaderboard(dataset, split)
    assert agents <= set(leaderboard.rewards)
    assert len(set(leaderboard.images)) == len(leaderboard.images) >= 100
    assert {len(rewards) for rewards in leaderboard.rewards.values()} == {len(leaderboard.images)}
    assert all(0 <= reward <= 1 for rewards in leaderboard.rewards.values() for reward in rewards)
    assert load_leaderboard(dataset, "train") == Leaderboard({}, [])


def test_leaderboards_of_photographs_hold_only_ids_and_rewards(flickr8k_root):
    file = files("glimpse_env") / "assets" / "flickr8k-val-standings.json"
    assert set(json.loads(file.read_text())) == {"command", "images", "rewards"}
    env = gym.make("Glimpse/Flickr8k-v0", split="val", render_mode="rgb_array", data_root=flickr8k_root).unwrapped
    leaderboard = load_leaderboard("flickr8k", "val")
    assert {*leaderboard.images} <= {env.dataset.image_id(row) for row in range(len(env.dataset))}
    game = Game(env, leaderboard)
    game.next_image()
    assert {"hard", "self-critical"} <= set(game.agent_rewards)


@pytest.mark.parametrize(
    ("dataset", "name"), [("shapes", "hard"), ("shapes", "oracle"), ("shapes-large", "reinforce"), ("flickr8k", "hard")]
)
def test_leaderboards_are_the_rewards_of_the_shipped_agents(dataset, name, request):
    """When it fails, shipped weights have changed: run the commands of ``train.standings`` in ``make weights``."""
    photographs = dataset == "flickr8k"
    root = request.getfixturevalue("flickr8k_root") if photographs else None
    split = "val" if photographs else "test"
    env_id = next(name for name, world in IDS.items() if world == dataset)
    env = gym.make(env_id, split=split, data_root=root, disable_env_checker=True).unwrapped
    agent = find_agent(name, dataset).make(env, 0)
    for row in (0, 1, 2):
        observation, _ = env.reset(options={"image": row})
        ended, state = False, None
        while not ended:
            action, state = agent.predict(observation, state, deterministic=True)
            observation, reward, ended, _, _ = env.step(action)
        expected = load_leaderboard(dataset, split).of(env.dataset.image_id(row))[name]
        assert expected == pytest.approx(reward, abs=2e-3)


def test_the_command_writes_standings(tmp_path, monkeypatch):
    from train import standings

    monkeypatch.setattr(standings, "shipped_agents", lambda dataset: ["hard", "random", "raster"])
    standings.main(standings.Options(limit=3, out=tmp_path / "standings.json"))
    content = json.loads((tmp_path / "standings.json").read_text())
    assert set(content["rewards"]) == {"hard", "random"}
    assert content["images"] == ["shapes-test-0", "shapes-test-1", "shapes-test-2"]
    assert content["rewards"]["hard"] == load_leaderboard("shapes", "test").rewards["hard"][:3]


def test_images_on_the_leaderboard_are_found_by_id(captioner_file):
    """The same photographs have other rows in another layout of their dataset."""
    game = Game(make_env(captioner_file), Leaderboard({"hard": [0.5, 0.25]}, ["shapes-test-70", "shapes-test-4"]))
    rewards = {}
    for _ in range(12):
        game.next_image()
        rewards[game.env.row] = game.agent_rewards["hard"]
    assert rewards == {70: 0.5, 4: 0.25}
