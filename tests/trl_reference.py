"""What TRL's SFTTrainer makes of prompts and answers: input_ids and labels, written once.

`pip install --target /tmp/trl --no-deps trl accelerate`, then
`PYTHONPATH=/tmp/trl:. python tests/trl_reference.py` writes tests/corpora/trl_reference.json, which
tests/corpora/test_templates.py holds our ids and masks against. Made with trl 1.16.0, transformers
5.24.0 and GPT-2's tokenizer.
"""

import json
import sys
import tempfile
from pathlib import Path

STRINGS = [
    ("plain", "Name a colour.", "\nAnswer: Red, like a lamp."),
    ("plain", "Who is naïve 🙂?", "\nAnswer: I am,\n\n  I think."),
    ("chat", "User: Name a colour.\n\nAssistant:", " Red."),
    ("alpaca", "Below is an instruction that describes a task. Write a response that appropriately "
     "completes the request.\n\n### Instruction:\nSay hello.\n\n### Response:", "\nHello"),
    ("none", "2 + 2 = ", "4"),
    ("none", "Once upon a", " time"),
    ("none", "wonder", "ful"),
    ("none", "Translate: cheese =>", " fromage"),
    ("none", "A blank line.\n\n", "Then more."),
    ("### {prompt}\n{answer}", "### Name a colour.\n", "Red."),
    ("Q: {prompt} A: {answer}", "Q: Who? A:", " I am."),
]  # fmt: skip
ASKED = [{"role": "user", "content": "Who?"}]
LONGER = [
    {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "I."}, {"role": "user", "content": "Why?"},
]  # fmt: skip
SAID = [{"role": "assistant", "content": "I am, as it were."}]
CONVERSATIONS = [(name, asked) for name in ("plain", "chat", "chatml", "alpaca")
                 for asked in (ASKED, LONGER)]  # fmt: skip
FILE = Path(__file__).parent / "corpora" / "trl_reference.json"


def main() -> None:
    import transformers
    import trl
    from datasets import Dataset

    from gptj_lab import chat_templates
    from gptj_lab.tokenizer import Tokenizer

    with tempfile.TemporaryDirectory() as folder:
        Tokenizer.gpt2(0).save(folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    config = transformers.GPT2Config(
        n_layer=1, n_head=1, n_embd=8, vocab_size=len(tokenizer), n_positions=512
    )
    model = transformers.GPT2LMHeadModel(config)

    def made(row: dict, **settings: object) -> dict:
        with tempfile.TemporaryDirectory() as out:
            settings = dict(output_dir=out, report_to=[], use_cpu=True, max_length=512) | settings
            trainer = trl.SFTTrainer(
                model, trl.SFTConfig(**settings), train_dataset=Dataset.from_list([row]),
                processing_class=tokenizer,
            )  # fmt: skip
        found = trainer.train_dataset[0]
        return {name: found[name] for name in ("input_ids", "labels")}

    written = {"trl": trl.__version__, "transformers": transformers.__version__}
    written["strings"] = [
        {"template": name, **made({"prompt": prompt, "completion": completion})}
        for name, prompt, completion in STRINGS
    ]
    written["conversations"] = []
    for name, asked in CONVERSATIONS:
        special = chat_templates.special_tokens(Tokenizer.gpt2(0))
        tokenizer.chat_template = chat_templates.named(name, special).source
        last = made({"prompt": asked, "completion": SAID})
        every = made({"messages": asked + SAID}, assistant_only_loss=True)
        written["conversations"].append({"template": name, "last": last, "every": every})
    FILE.write_text(json.dumps(written) + "\n", "utf-8")
    print(f"{FILE}: {len(STRINGS)} strings, {len(CONVERSATIONS)} conversations", file=sys.stderr)


if __name__ == "__main__":
    main()
