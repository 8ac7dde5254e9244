"""How well models tell a story, on texts that they have not been trained on.

python benchmarks/stories.py [MODEL ...] [--corpus ../shared/corpus] [--eval ../shared/eval]

Prints a Markdown table, a column a model ("pocket", a directory, or a hub name); --json FILE keeps
the figures and the samples. Measures:
- bits per byte: tales (*_val.txt of the corpus) and code (held-out modules), each document whole;
  WikiText-2's first bytes; LAMBADA's last words, each after its passage.
- next sentence: the right next sentence of a held-out tale against three others of the same tale
  that are not in what was read before, by mean log-probability of its tokens (chance 25 %).
- who is who: stories_probes.tsv, pairs of contexts with the same two continuations, of which each
  fits one: who doesn't heed the context gets exactly 50 %.
- samples of "Once upon a time" at temperature 0.8, seeds from 0, to the end of the context: share
  of a sample's runs of four words that it has said before, different words in its first 100 words,
  share of the samples that end by themselves.
"""

import argparse
import dataclasses
import functools
import json
import math
import random
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import gptj_lab
from gptj_lab.finetuning import pocket
from gptj_lab.language_model import LanguageModel

PROBES = Path(__file__).with_name("stories_probes.tsv")
PROMPT = "Once upon a time"
_FOREIGN_BYTES = 100_000  # of WikiText-2
_LAST_WORDS = 300  # passages of LAMBADA
_READ = 192  # tokens of a tale before the sentence that is asked for
_SENTENCE = range(6, 41)  # words
_ASKED = 16  # sentences of each tale


@dataclasses.dataclass(frozen=True)
class Question:
    """What was read, and continuations of which the first is right."""

    read: str
    answers: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Probe:
    kind: str
    question: Question


# --- Questions ---


def sentences(text: str) -> list[str]:
    """The text cut after the ends of its sentences; joined they are the text again."""
    return re.findall(r"""\S.*?(?:[.!?]["')]*(?=\s)|\Z)\s*""", text, re.S)


def next_sentences(tales: Iterable[str], seed: int = 0) -> list[Question]:
    """For up to _ASKED sentences of each tale: the tale before, the sentence, three others."""
    rng = random.Random(seed)
    found = []
    for tale in tales:
        parts = sentences(tale)
        fit = [i for i, part in enumerate(parts) if len(part.split()) in _SENTENCE]
        asked = rng.sample(fit, min(_ASKED, len(fit)))
        for place in sorted(asked):
            read = "".join(parts[:place]).rstrip()
            right = parts[place].strip()
            others = [parts[i].strip() for i in fit if i > place + 1 or i < place - 40]
            others = [other for other in dict.fromkeys(others) if other != right]
            if place and len(others) >= 3:
                wrong = rng.sample(others, 3)
                answers = tuple(" " + answer for answer in (right, *wrong))
                found.append(Question(read, answers))
    return found


def probes(path: Path = PROBES) -> list[Probe]:
    """Two probes of each line: kind, two contexts, and the continuation that fits each."""
    found = []
    for line in path.read_text("utf-8").splitlines():
        kind, first, second, for_first, for_second = line.split("\t")
        found.append(Probe(kind, Question(first, (" " + for_first, " " + for_second))))
        found.append(Probe(kind, Question(second, (" " + for_second, " " + for_first))))
    return found


# --- Scores ---


@functools.partial(jax.jit, static_argnames="graph")
def _row_scores(graph, params, rows: jax.Array, counted: jax.Array) -> jax.Array:
    """Log-probabilities in nats of the tokens that are counted, summed for each row."""
    logits, _ = nnx.merge(graph, params)(rows[:, :-1])
    logprobs = jax.nn.log_softmax(logits.astype(jnp.float32))
    own = jnp.take_along_axis(logprobs, rows[:, 1:, None], axis=2)[..., 0]
    return jnp.where(counted, own, 0.0).sum(1)


def log_probabilities(
    model: LanguageModel, texts: Sequence[tuple[str, str]], longest: int, group: int = 16
) -> np.ndarray:
    """[texts, 2]: nats of each continuation's tokens after what was read, and their number.

    Both are tokenised together, cut where the first token of the continuation begins; of what was
    read the last tokens are kept, <|endoftext|> before them if they are all.
    """
    graph, params = nnx.split(model.network)
    end = model.tokenizer.end_of_text_id or 0
    rows = np.full((len(texts), longest + 1), end, np.int32)
    counted = np.zeros((len(texts), longest), bool)
    for i, (read, then) in enumerate(texts):
        before, after = model.tokenizer.encode(read), model.tokenizer.encode(then)
        ids = [end, *before, *after][-(longest + 1) :]
        if len(after) >= len(ids):
            raise ValueError(f"{then!r} is {len(after)} tokens, more than the {longest} of a row")
        rows[i, : len(ids)] = ids
        counted[i, len(ids) - len(after) - 1 : len(ids) - 1] = True
    scores = []
    for start in range(0, len(rows), group):
        some = np.arange(start, start + group) % len(rows)
        scores.append(np.asarray(_row_scores(graph, params, rows[some], counted[some])))
    return np.stack([np.concatenate(scores)[: len(rows)], counted.sum(1)], axis=1)


def answered(model: LanguageModel, questions: Sequence[Question], longest: int) -> np.ndarray:
    """Of each question, whether the right continuation's mean log-probability is the highest."""
    texts = [(question.read, answer) for question in questions for answer in question.answers]
    found = log_probabilities(model, texts, longest)
    means = iter(found[:, 0] / found[:, 1])
    right = []
    for question in questions:
        first, *others = (next(means) for _ in question.answers)
        right.append(first > max(others))
    return np.array(right)


def _last_words(model: LanguageModel, file: Path) -> float:
    """Bits per byte of LAMBADA's last words."""
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()[:_LAST_WORDS]]
    texts = [(line["context"].rstrip(), " " + line["continuation"].strip()) for line in lines]
    found = log_probabilities(model, texts, min(model.config.context, 256))
    return -found[:, 0].sum() / math.log(2) / sum(len(then.encode()) for _, then in texts)


# --- Samples ---


def words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def repeated(text: str) -> float:
    """The share of the text's runs of four words that stand in it before."""
    said = words(text)
    runs = [tuple(said[i : i + 4]) for i in range(len(said) - 3)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def samples(model: LanguageModel, count: int) -> list[dict]:
    """Of each seed from 0 to count - 1: the text with its prompt, and why it ended."""
    room = model.config.context - len(model.tokenizer.encode(PROMPT)) - 1
    found = []
    for seed in range(count):
        made = model.generate(PROMPT, max_new_tokens=room, temperature=0.8, seed=seed)[0]
        found.append({"seed": seed, "text": PROMPT + made.text, "ended": made.finish_reason})
    return found


# --- The table ---


def measure(
    model: LanguageModel, corpus: Path, evaluation: Path, count: int, say: Callable[[str], None]
) -> dict:
    """All figures of one model, and its samples."""
    context = min(model.config.context, 512)
    tales = pocket.validation_documents(corpus)

    def bits(texts: list[str]) -> float:
        return pocket.bits_per_byte(model.network, model.tokenizer, texts, context=context)

    found: dict = {}

    def tell(name: str, value: float) -> None:
        found[name] = value
        say(f"{name}: {_cell(name, value)}")

    tell("parameters", sum(x.size for x in jax.tree.leaves(nnx.state(model.network))))
    asked = probes()
    right = answered(model, [probe.question for probe in asked], 64)
    tell("who is who", float(right.mean()))
    for kind in dict.fromkeys(probe.kind for probe in asked):
        own = np.array([probe.kind == kind for probe in asked])
        tell(f"who is who: {kind}", float(right[own].mean()))
    questions = next_sentences(tales)
    tell("next sentence", float(answered(model, questions, _READ + 64).mean()))
    tell("code, bits per byte", bits(pocket.held_out_documents()))
    tell("tales, bits per byte", bits(tales))
    made = samples(model, count)
    tell("repeated runs of four words", float(np.mean([repeated(s["text"]) for s in made])))
    first = [len(set(words(s["text"])[:100])) for s in made if len(words(s["text"])) >= 100]
    tell("different words in the first 100", float(np.mean(first)) if first else math.nan)
    ended = [s["ended"] == "end_of_text" for s in made]
    tell("samples that end by themselves", float(np.mean(ended)))
    wiki, lambada = evaluation / "wikitext2_valid.txt", evaluation / "lambada_openai.jsonl"
    if wiki.is_file():
        text = wiki.read_bytes()[:_FOREIGN_BYTES].decode("utf-8", "ignore")
        tell("WikiText-2, bits per byte", bits([text]))
    if lambada.is_file():
        tell("LAMBADA's last words, bits per byte", _last_words(model, lambada))
    return found | {"samples": made}


def table(figures: dict[str, dict]) -> str:
    """Markdown: a row a measure, a column a model."""
    names = [name for name in next(iter(figures.values())) if name != "samples"]
    lines = [f"| | {' | '.join(figures)} |", "|---" * (len(figures) + 1) + "|"]
    for name in names:
        cells = [_cell(name, found.get(name, math.nan)) for found in figures.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(name: str, value: float) -> str:
    if name == "parameters":
        return f"{value / 1e6:.1f} M"
    if "bits" in name:
        return f"{value:.3f}"
    return f"{value:.1f}" if name.startswith("different") else f"{value:.1%}"


def main() -> None:
    shared = Path(__file__).resolve().parents[2] / "shared"
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="*", default=["pocket"])
    parser.add_argument("--corpus", type=Path, default=shared / "corpus", help="has *_val.txt")
    parser.add_argument("--eval", type=Path, default=shared / "eval")
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--json", type=Path, help="figures and samples go here")
    chosen = parser.parse_args()
    if not any(chosen.corpus.glob("*_val.txt")):
        parser.error(f"--corpus {chosen.corpus} holds no *_val.txt, the tales that are asked about")
    figures = {}
    for name in chosen.models:
        model = gptj_lab.load(name, weights="float32")
        figures[str(name)] = measure(
            model, chosen.corpus, chosen.eval, chosen.samples, functools.partial(print, flush=True)
        )
        if chosen.json:
            chosen.json.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    print(table(figures))


if __name__ == "__main__":
    main()
