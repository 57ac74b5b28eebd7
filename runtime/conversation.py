"""A dialogue: turns that a template makes one stream of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gecko_mlc.formats.errors import GeckoError
from gecko_mlc.formats.options import check_type
from gecko_mlc.runtime.generate.generation import Generation
from gecko_mlc.runtime.generate.options import GenerationOptions
from gecko_mlc.runtime.generate.scheduler import Stream
from gecko_mlc.runtime.state.slots import slots_of
from gecko_mlc.runtime.text.templates import turn


class Conversation:
    """A dialogue with a state of its own. A turn feeds only its own tokens: the state remembers the rest.

    `model` has an `engine`, a `tokenizer`, a `chat_config` with a `conv_template`, and a `beginning`. The state holds
    what the template says of what was said and answered, whatever ended an answer, and nothing of a turn whose message
    was not consumed. Several conversations of a model do not disturb each other.
    """

    def __init__(self, model: Any, slot: int | None = None) -> None:
        self._model, self._lease = model, slots_of(model.engine).lease(slot)
        self._last: Generation | None = None
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._end_last()
        self._lease.reset()
        # What of the dialogue the state has not seen, None before its beginning.
        self._unseen: list[int] | None = None

    @property
    def tokens(self) -> int:
        """Tokens the state has seen."""
        return self._lease.position

    def say(
        self,
        message: str,
        options: GenerationOptions | None = None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> Generation:
        """The answer to `message`, as the model's `options` or others say, to be iterated over; one before it ends
        where it was read to.

        Raises `GeckoError` for an empty message.
        """
        options = self._model.options() if options is None else options
        check_type("message", message, str)
        check_type("options", options, GenerationOptions)
        if not message.strip():
            raise GeckoError("the message is empty")
        self._end_last()
        template, tokenizer = self._model.chat_config.conv_template, self._model.tokenizer
        parts = turn(template, message, first=self._unseen is None)
        if self._unseen is None:
            ids = tokenizer.with_beginning(tokenizer.encode_parts(parts), self._model.beginning())
        else:
            ids = [*self._unseen, *tokenizer.encode_parts(parts, begins=False)]
        options = options.model_copy(update={"stop": (*options.stop, *template.stop_str)})
        stream = Stream(self._lease, tokenizer, ids, options, follow=template.seps[-1])
        self._last = Generation(stream, interrupted)
        return self._last

    def _end_last(self) -> None:
        """End the last answer where it was read to, and note what the state has not seen of it."""
        if self._last is None:
            return
        self._last.close()
        stream, self._last = self._last.stream, None
        if not stream.undone:
            self._unseen = [*stream.pending, *stream.following]
