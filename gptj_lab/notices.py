"""What a user should know although nothing went wrong: one line on standard error."""

import sys


def tell(sentence: str) -> None:
    """Prints a sentence beside the program's own output; what can't be printed is escaped."""
    shown = sentence if sentence.isprintable() else ascii(sentence)[1:-1]
    print(f"gptj_lab: {shown}", file=sys.stderr, flush=True)
