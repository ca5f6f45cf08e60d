"""Shell text and argument lists into started engines, each word with its place."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from moesize.check.server import Unresolved
    from moesize.check.source import SourceText, Word


class Launch(NamedTuple):
    """An engine that a text starts.

    words         what follows the program, its verb (`serve`) left out; variables filled in
    environment   variables that the program sees
    place         the word that names the program
    image         of `docker run IMAGE`
    visible       GPUs that CUDA_VISIBLE_DEVICES or `docker run --gpus` lets it see
    unresolved    variables in `words` that nothing defines
    """

    engine: str
    words: tuple[Word, ...]
    environment: dict[str, Word]
    place: Word
    image: Word | None = None
    visible: int | None = None
    unresolved: tuple[Unresolved, ...] = ()


def launches_in(
    text: SourceText, environment: Mapping[str, Word], arguments: Sequence[Word] = ()
) -> list[Launch]:
    """The engines that a shell text starts; `arguments` are its $1, $2, ... and "$@"."""
    raise NotImplementedError


def launches_of(
    words: Sequence[Word],
    environment: Mapping[str, Word],
    *,
    image: Word | None = None,
    texts: Mapping[Word, SourceText] | None = None,
) -> list[Launch]:
    """The engines that an argument list (exec form) starts.

    `words` are command + args of a container; without a program in them the image's own entrypoint
    decides (vllm/vllm-openai: `vllm serve`). `sh -c TEXT` is read as a shell text.
    """
    raise NotImplementedError
