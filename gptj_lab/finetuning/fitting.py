"""Windows that fit a model, and a corpus that was made for it."""

from __future__ import annotations

from gptj_lab.finetuning.corpus import Corpus
from gptj_lab.finetuning.methods import Method, SoftPrompt
from gptj_lab.finetuning.settings import whole
from gptj_lab.language_model import LanguageModel

_CONTEXT = 512  # predictions a window at most, where none are given


def room(context: int | None, model: LanguageModel, method: Method) -> int:
    """Predictions a window: those given if there is room for them, else a good number.

    Raises:
        ValueError: the model's context has no room for them.
    """
    most = model.config.context - (method.length if isinstance(method, SoftPrompt) else 0)
    if most < 1:
        raise ValueError(
            f"length is {model.config.context - most}, but the model's context is "
            f"{model.config.context}: give fewer, so that there is room for text"
        )
    if context is not None:
        whole("context", context, 1)
    if context is not None and context > most:
        left = f", {most} of which its soft prompt leaves" if most < model.config.context else ""
        raise ValueError(
            f"context is {context}, but the model's is {model.config.context}{left}: give at most "
            "that"
        )
    return min(most, _CONTEXT) if context is None else context


def corpus_of(corpus: Corpus, model: LanguageModel, context: int | None) -> Corpus:
    """The corpus, if it was made for such a model.

    Raises:
        ValueError: it wasn't.
    """
    if corpus.tokenizer.fingerprint() != model.tokenizer.fingerprint():
        raise ValueError(
            "the corpus was tokenised by another tokenizer than the model's: prepare it with "
            "model.tokenizer"
        )
    if context is not None and context != corpus.train.context:
        raise ValueError(
            f"context is {context}, but the corpus has windows of {corpus.train.context}: leave it "
            "out, or prepare the corpus with it"
        )
    return corpus
