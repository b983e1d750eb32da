"""What is judged: the turns of the questions that two answer files share, as pairs for the judge.

A later turn shows the judge the conversation before it as the answers' beginnings, each its own. Not for: the judge
prompt (`pipeline/annotate/prompt.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from twdpo.errors import DataError
from twdpo.evaluate.benchmarks.reading import AnswerSet, Given
from twdpo.pipeline.annotate.prompt import PromptBuilder
from twdpo.preferences import Message, Pair

_LATER = (
    "After an answer to this, the user wrote a second message. Each answer below begins with what its assistant wrote "
    "first, as context. Judge the answers to the second message:"
)
#: What marks a context that is cut.
_CUT = " […]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """One turn of one question with both answers to it. turn: from 1."""

    question: str
    turn: int
    category: str
    given_a: Given
    given_b: Given

    @property
    def key(self) -> str:
        """What its verdict is kept under."""
        return f"{self.question}/{self.turn}"

    @property
    def answers(self) -> tuple[str, str]:
        """A's and B's answer to this turn."""
        return self.given_a.answers[self.turn - 1], self.given_b.answers[self.turn - 1]

    def pair(self, builder: PromptBuilder) -> Pair:
        """As the judge is shown it; A is the chosen answer."""
        asked = self.given_a.questions[: self.turn]
        text = asked[0] if self.turn == 1 else f"{asked[0]}\n\n{_LATER}\n\n" + "\n\n".join(asked[1:])
        a, b = (self._answer(given, builder) for given in (self.given_a, self.given_b))
        return Pair(prompt=(Message(role="user", content=text),), chosen=a, rejected=b)

    def _answer(self, given: Given, builder: PromptBuilder) -> str:
        """The answer to this turn; a later one behind those before, cut to half of what a judge reads of an answer."""
        answer = given.answers[self.turn - 1]
        if self.turn == 1:
            return answer
        context = "\n\n".join(given.answers[: self.turn - 1])
        tokens = builder.literal.encode(context)
        budget = builder.answer_tokens // 2
        if len(tokens) > budget:
            context = context[: int(tokens.starts[budget])].rstrip() + _CUT
        return f"(To the first message:)\n{context}\n\n(To the second message:)\n{answer}"


def matches(a: AnswerSet, b: AnswerSet, *, common: bool) -> list[Match]:
    """All turns of all questions that both answer, in A's order.

    Raises DataError where the files are of different benchmarks or texts, or, but for `common`, answer other questions.
    """
    if a.format != b.format:
        raise DataError(f"{a.name} answers {_title(a)} and {b.name} {_title(b)}: compare answers of one benchmark")
    both = [key for key in a.given if key in b.given]
    lacking = {one.name: len(other.given) - len(both) for one, other in ((a, b), (b, a))}
    if not both:
        raise DataError(f"{a.name} and {b.name} have no question in common")
    if any(lacking.values()) and not common:
        told = " and ".join(f"{name} lacks {n} that the other answers" for name, n in lacking.items() if n)
        raise DataError(
            f"{a.name} and {b.name} do not answer the same questions: {told}; complete them, or judge the "
            f"{len(both)} that both answer with --common"
        )
    return [match for key in both for match in _turns(key, a.given[key], b.given[key])]


def _turns(key: str, a: Given, b: Given) -> Iterator[Match]:
    if a.questions != b.questions or len(a.answers) != len(b.answers):
        raise DataError(f"the two files answer other texts under the same question {key}")
    for turn in range(1, len(a.answers) + 1):
        yield Match(question=key, turn=turn, category=a.category or b.category, given_a=a, given_b=b)


def _title(answers: AnswerSet) -> str:
    return answers.format.replace("_", " ")
