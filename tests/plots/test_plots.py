"""The pictures show the numbers that they are given, to every eye and to none."""

import io
import itertools
import warnings

import numpy as np
import pytest
from IPython.core.formatters import DisplayFormatter
from PIL import Image

from gptj_lab import plots
from gptj_lab.plots import style

ROWS = ["embed", "0", "1", "2"]
# What is in prompts: markup, mathematics, a bell, right-to-left, an override of direction, emoji.
TOKENS = ["␣the", "$x$", "<b>hi</b>", "a\x07b", "אבג", "\u202edcba", "🙂", "_^\\frac", "‹E2›"]


def causal(*shape: int) -> np.ndarray:
    random = np.random.default_rng(0).random(shape).astype(np.float32)
    lower = np.tril(random + 0.01)
    return lower / lower.sum(-1, keepdims=True)


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


EVERY = {
    "heads_grid": lambda: plots.heads_grid(causal(2, 3, 9, 9), "A prompt", [(1, 2)]),
    "attention_head": lambda: plots.attention_head(causal(9, 9), TOKENS, "layer 1 head 2"),
    "logit_lens_table": lambda: plots.logit_lens_table(
        [TOKENS] * 4, np.abs(numbers(4, 9)), ROWS, TOKENS
    ),
    "rank_lines": lambda: plots.rank_lines({"␣cat": [9, 3, 0, 0], "$x$": [0, 1, 2, 3]}, ROWS),
    "lines": lambda: plots.lines([0, 10, 20], {"repeat": [3.9, 3.5, 0.3]}, "nats", baseline=3.87),
    "lines_over_layers": lambda: plots.lines_over_layers({"KL": [3.0, 2, 1, 0]}, ROWS, "nats"),
    "attribution_waterfall": lambda: plots.attribution_waterfall(TOKENS, numbers(9), most=4),
    "token_values": lambda: plots.token_values(TOKENS, numbers(9), "gradient x input"),
    "head_scores": lambda: plots.head_scores(numbers(2, 3), "effect", signed=True),
    "patching_grid": lambda: plots.patching_grid(numbers(4, 9), ROWS, TOKENS),
    "score_bars": lambda: plots.score_bars({"layer 1 head 2": 0.5, "$b$": -0.1}, "score"),
    "loss_curve": lambda: plots.loss_curve({"tales": [(0, 8.0), (1e6, 3.0)]}),
    "training_curves": lambda: training(),
    "training_plan": lambda: plan(),
}
STEPS = np.arange(1, 41, dtype=np.float32)


def training(**more):
    held = np.array([[0, 20, 40], [3.5, 2.5, 2.75]], np.float32)
    loss = 2 + np.exp(-STEPS / 10)
    below = {"learning rate": STEPS * 1e-4, "$g$ gradient norm": 1 / STEPS}
    shown = {"title": "tiny, $LoRA$ <b>rank 8</b>", "base_loss": 3.5, "below": below}
    return plots.training_curves(STEPS, loss, held, **(shown | more))


def plan(lengths=((1, 2, 4), (0, 5, 2))):
    kinds = [("weights", 2.0e9, "2 GB"), ("optimiser", 5e8, "500 MB"), ("workspace", 0, "0 bytes")]
    said = ["LoRA trains $1$ of 2 numbers.", "7 documents, <b>20</b> tokens."]
    return plots.training_plan(kinds, lengths, title="tiny", memory="2.5 of $8$ GB", said=said)


def texts(figure) -> str:
    return " ".join(text.get_text() for axes in figure.axes for text in axes.texts)


@pytest.mark.parametrize("name", EVERY)
def test_every_picture_shows_itself_with_its_alt_text(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a glyph that is missing, mathematics that isn't any
        figure = EVERY[name]()
        data, metadata = DisplayFormatter().format(figure)
    assert data["image/png"].startswith(b"\x89PNG") and "text/html" not in data
    assert metadata["image/png"]["alt"] == plots.alt_text(figure) == data["text/plain"]
    assert plots.alt_text(figure).endswith(".") and len(plots.alt_text(figure)) > 20
    assert len(plots.png(figure, 60_000)) <= 60_000
    assert not any(letter in plots.alt_text(figure) for letter in "\x07\u202e")


def test_all_names_are_tried_here():
    assert set(plots.__all__) - {"alt_text", "png", "mesh_placement"} == set(EVERY)


def test_a_plan_shows_each_kind_of_memory_and_the_documents():
    memory, documents = plan().axes
    assert [bar.get_width() for bar in memory.patches] == [2.0e9, 5e8, 0]
    assert texts(plan()) == "2 GB 500 MB 0 bytes"
    assert [bar.get_height() for bar in documents.patches] == [0, 5, 2]
    assert "7 documents" in plots.alt_text(plan()) and "trains $1$ of 2" in plots.alt_text(plan())
    assert texts(plan(None)).endswith("no text yet")


def test_a_large_grid_is_thinned_out_to_the_bytes_allowed():
    figure = plots.heads_grid(np.tril(np.abs(numbers(28, 16, 64, 64)) % 1))  # noise packs worst
    small = plots.png(figure, 60_000)
    assert len(small) <= 60_000 < len(plots.png(figure))
    assert Image.open(io.BytesIO(small)).width > 300
    with pytest.raises(ValueError, match="more than the 500 allowed"):
        plots.png(figure, 500)


def test_the_grid_shows_each_share_in_its_place():
    patterns = np.zeros((2, 3, 4, 4), np.float32)
    patterns[..., 0] = 0.25
    patterns[1, 2, 3, 1] = 1
    (image,) = plots.heads_grid(patterns).axes[0].get_images()
    shown = np.asarray(image.get_array().filled(np.nan))
    side = 4 + 2
    assert shown.shape == (2 * side, 3 * side)
    tile = shown[side : side + 4, 2 * side : 2 * side + 4]
    np.testing.assert_array_equal(tile[3], [0.25, 1, 0, 0])
    assert np.isnan(tile[0, 1:]).all() and np.isnan(shown[4]).all()


def test_a_pooled_tile_shows_the_largest_share_in_it():
    pattern = np.zeros((1, 1, 256, 256), np.float32)
    pattern[..., 0] = 0.1
    pattern[0, 0, 200, 100] = 0.9
    (image,) = plots.heads_grid(pattern).axes[0].get_images()
    shown = np.asarray(image.get_array().filled(0))[:48, :48]
    assert np.unravel_index(shown.argmax(), shown.shape) == (200 * 48 // 256, 100 * 48 // 256)
    assert shown.max() == np.float32(0.9)


def test_one_head_prints_its_shares_and_hides_the_future():
    pattern = np.array([[1, 0.0], [0.25, 0.75]], np.float32)
    figure = plots.attention_head(pattern, ["a", "b"])
    assert texts(figure) == "1.00 .25 .75"
    assert "'b', reads 'b' most, with 75%" in plots.alt_text(figure)
    (image,) = figure.axes[0].get_images()
    np.testing.assert_array_equal(image.get_array().mask, [[False, True], [False, False]])


def test_the_bars_of_the_waterfall_end_at_the_sum():
    values = numbers(20)
    figure = plots.attribution_waterfall([f"part {i}" for i in range(20)], values, most=5)
    bars = [patch for patch in figure.axes[0].patches if patch.get_width()]
    assert len(bars) == 5 + 1 + 1
    ends = [bar.get_x() + bar.get_width() for bar in bars]
    starts = [bar.get_x() for bar in bars]
    np.testing.assert_allclose(starts[1:6], ends[:5], atol=1e-6)
    np.testing.assert_allclose([ends[5], ends[6]], values.sum(), atol=1e-5)
    sizes = [abs(bar.get_width()) for bar in bars[:5]]
    assert sizes == sorted(sizes, reverse=True)
    low, high = figure.axes[0].get_xlim()
    assert low < min(starts + ends) and max(starts + ends) < high
    assert "15 others" in [label.get_text() for label in figure.axes[0].get_yticklabels()]


def test_ranks_are_told_from_one_and_the_best_is_on_top():
    figure = plots.rank_lines({"␣cat": [9, 3, 0, 0]}, ROWS)
    (line,) = figure.axes[0].lines
    np.testing.assert_array_equal(line.get_ydata(), [10, 4, 1, 1])
    bottom, top = figure.axes[0].get_ylim()
    assert bottom > top and "10 to 1" in plots.alt_text(figure)


def test_lines_lie_at_their_places_and_leave_out_what_is_not_a_number():
    figure = plots.lines([0, 4, 9], {"$a$": [3, 2, np.nan], "b": [1, 1, 2]}, "nats", log=True)
    (first, second), axes = figure.axes[0].lines, figure.axes[0]
    np.testing.assert_array_equal(first.get_xdata(), [0, 4, 9])
    np.testing.assert_array_equal(second.get_ydata(), [1, 1, 2])
    assert axes.get_yscale() == "log" and "nats from step 0 to 9: $a$ 3 to" in figure.alt
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["$a$", "b"]
    with pytest.raises(ValueError, match="points of 'b': there are 2, but 3 places of rank"):
        plots.lines([1, 2, 3], {"b": [1, 2]}, "size", along_name="rank")
    with pytest.raises(ValueError, match="curves is empty"):
        plots.lines([1], {}, "size")


def test_lines_are_named_at_their_ends_or_where_these_meet_in_a_legend():
    apart = plots.lines_over_layers({"a": [0, 1, 2, 9], "$b$": [0, 1, 2, 3]}, ROWS, "nats")
    assert apart.axes[0].get_legend() is None and texts(apart) == "a $b$"
    meet = plots.lines_over_layers({"a": [9.0, 1, 2, 0], "$b$": [4.0, 1, 2, 0]}, ROWS, "nats")
    assert [each.get_text() for each in meet.axes[0].get_legend().get_texts()] == ["a", "$b$"]
    plots.png(meet)


def test_the_lens_says_when_the_answer_changes():
    figure = plots.logit_lens_table([["a"], ["b"], ["b"], ["c"]], numbers(4, 1), ROWS, ["x"])
    assert "'a' from embed on, 'b' from 0 on, 'c' from 2 on" in plots.alt_text(figure)


def test_nothing_lies_in_the_middle_of_what_has_signs():
    for values in (numbers(4, 9) + 3, np.zeros((4, 9), np.float32)):
        (image,) = plots.patching_grid(values, ROWS, TOKENS).axes[0].get_images()
        assert image.norm(0.0) == 0.5 and 0 <= image.norm(values.max()) <= 1


def test_a_run_tells_where_it_began_ended_and_was_best():
    figure = training()
    axes = figure.axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    np.testing.assert_array_equal(lines["held out"].get_ydata(), [3.5, 2.5, 2.75])
    assert lines["best: 2.500"].get_xdata() == [20]
    assert "from 2.90 to 2.02 nats a token" in plots.alt_text(figure)
    assert "from 3.50 to 2.75, lowest at step 20 with 2.50" in plots.alt_text(figure)
    assert len(figure.axes) == 3 and len(training(below=None).axes) == 1
    nothing = np.zeros((2, 0), np.float32)
    unknown = np.full(40, np.nan, np.float32)
    bare = plots.training_curves(STEPS, unknown, nothing)
    assert plots.alt_text(bare) == "40 steps." and plots.png(bare)


def test_what_is_not_known_is_said():
    unknown = np.full((2, 3), np.nan, np.float32)
    assert "Nothing is known" in plots.alt_text(plots.head_scores(unknown, "score"))
    unknown[1, 2] = 0.5
    assert "layer 1 head 2 with 0.50" in plots.alt_text(plots.head_scores(unknown, "score"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plots.attention_head(causal(3, 3), ["a"]), "tokens: there are 1, but 3 rows"),
        (
            lambda: plots.heads_grid(causal(2, 3, 4, 4), marked=[(2, 0)]),
            r"\(2, 0\) can't be marked",
        ),
        (lambda: plots.patching_grid(numbers(2, 3), ["0"], list("abc")), "there are 1, but 2 rows"),
        (lambda: plots.score_bars({}, "score"), "scores is empty"),
        (lambda: training(below={"rate": STEPS[:3]}), "points of rate: there are 3, but 40 steps"),
        (
            lambda: plots.training_curves(STEPS[:0], STEPS[:0], np.zeros((2, 0), np.float32)),
            "no step yet",
        ),
        (lambda: plots.lines_over_layers({}, ROWS, "nats"), "curves is empty"),
        (lambda: plots.rank_lines({"a": [1]}, ROWS), "points of 'a': there are 1, but 4 layers"),
        (lambda: plots.attribution_waterfall(["a"], numbers(2)), "there are 1, but 2 values"),
        (lambda: plots.token_values(["a"], numbers(2), "x"), "tokens: there are 1, but 2 values"),
    ],
)
def test_what_doesnt_fit_is_refused_with_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_axes_that_are_needed_are_named():
    axes = ("layers", "heads")
    with pytest.raises(ValueError, match=r"scores has shape \(3,\): .* \[layers, heads\] is"):
        style.numbers("scores", np.zeros(3), *axes)
    for values in ({"blocks.0.attn.pattern": 1}, "text", [[1], [2, 3]]):
        with pytest.raises(TypeError, match="scores is of type .*: an array of numbers"):
            style.numbers("scores", values, *axes)
    assert style.numbers("scores", [[1, 2]], *axes).dtype == np.float32


def test_only_our_pictures_have_an_alt_text():
    from matplotlib.figure import Figure

    with pytest.raises(ValueError, match="no alt text"):
        plots.alt_text(Figure())


# Machado, Oliveira, Fernandes 2009, severity 1.0: what the eye without one kind of cone sees,
# of linear RGB.
BLINDNESS = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                   [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                     [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                   [0.004733, 0.691367, 0.303900]],
    "none": np.eye(3),
}  # fmt: skip


def lab(colours: np.ndarray, matrix) -> np.ndarray:
    """CIE L*a*b* of sRGB colours [n, 3] as an eye sees them."""
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.transpose(matrix), 0, 1)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = seen @ to_xyz.T / (0.9505, 1, 1.089)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = f.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


@pytest.mark.parametrize("eye", BLINDNESS)
def test_colours_are_told_apart_by_every_eye(eye):
    ends = np.linspace(0, 1, 11)
    seen = lab(np.asarray(style.diverging()(ends))[:, :3], BLINDNESS[eye])
    distance = np.linalg.norm(seen[:5] - seen[:5:-1], axis=-1)  # as much less and as much more
    assert (distance[:4] > 20).all(), distance
    for arm in (seen[:6], seen[:4:-1]):
        assert (np.diff(arm[:, 0]) > 0).all(), "lightness grows towards nothing"
    seen = lab(np.asarray(style.sequential()(ends))[:, :3], BLINDNESS[eye])
    assert (np.diff(seen[:, 0]) > 3).all()


@pytest.mark.parametrize("eye", BLINDNESS)
def test_lines_differ_by_dash_and_mark_and_mostly_by_colour(eye):
    from matplotlib.colors import to_rgb

    assert len({str(dashes) for _, dashes, _ in style.LINES}) == len(style.LINES)
    assert len({mark for _, _, mark in style.LINES}) == len(style.LINES)
    seen = lab(np.array([to_rgb(colour) for colour, _, _ in style.LINES]), BLINDNESS[eye])
    for first, second in itertools.combinations(seen[:4], 2):
        assert np.linalg.norm(first - second) > 8


def test_ink_is_read_on_every_ground():
    for colours in (style.sequential(), style.diverging()):
        for ground in colours(np.linspace(0, 1, 101)):
            light = {"#000000": 0.0, "#ffffff": 1.0}[style.ink_on(ground)]
            channels = ground[:3]
            linear = np.where(
                channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
            )
            found = float(linear @ (0.2126, 0.7152, 0.0722))
            assert (max(light, found) + 0.05) / (min(light, found) + 0.05) >= 4.5
