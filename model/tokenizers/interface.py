"""The interface of every tokenizer: ids of a text, bytes of an id, and which ids are text."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

from model.config import CheckpointError
from model.tokenizers.decoder import Decoder

MASKS = {"[MASK]": "mask", "[sMASK]": "smask", "[gMASK]": "gmask"}
_ROLES = {"endoftext": "eos", "startofpiece": "sop", "endofpiece": "eop"}


class _Known(dict[int, bytes]):
    """The bytes of ids that were asked for before."""

    def __init__(self, of: Callable[[int], bytes]) -> None:
        self._of = of

    def __missing__(self, token_id: int) -> bytes:
        found = self[token_id] = self._of(token_id)
        return found


class Tokenizer(ABC):
    """Plain text to ids and back. A text that spells a special token is plain text.

    Ids are 0 … `size` − 1. `special` maps a role (eos, cls, mask, sop, …) to the id of its token, as far as the
    vocabulary has it; `masks` maps a mask's name to its id; `ends` are the ids that end a span, that of training first.
    `aliases` maps an id to another id with the same embedding row, and must never be drawn. `mask_strips`: in the
    original's layout a mask token swallows the white space to its left. `space_lost_behind` is a character behind which
    `decode` omits a space. `opens_with_space`: a space is encoded before a text that begins a document (`opened`).
    `tags` are the ids of a text's first tokens, a set for each, in a model whose texts all begin so.
    """

    mask_strips = False
    space_lost_behind = ""
    opens_with_space = False
    tags: tuple[frozenset[int], ...] = ()

    def __init__(
        self,
        special: Mapping[str, int],
        names: Mapping[int, str],
        num_text: int,
        ends: Sequence[str] = ("eop", "eos"),
    ) -> None:
        """`names` has how special tokens are spelled, `num_text` is one past the last id of text, `ends` has roles."""
        self.special = special
        self.size: int = max(num_text, *(i + 1 for i in special.values()))
        self.masks = {name: special[role] for name, role in MASKS.items() if role in special}
        self.ends = tuple(dict.fromkeys(special[role] for role in ends if role in special))
        self.aliases: Mapping[int, int] = {}
        self._names = names
        self._known = _Known(self._bytes)

    @property
    def names(self) -> Mapping[int, str]:
        """Id → spelling of a special token."""
        return self._names

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of a plain text."""

    def encode_on(self, text: str) -> list[int]:
        """The ids of a plain text that goes on from another one: without a space that the vocabulary has before a
        text."""
        return self.encode(text)

    @abstractmethod
    def text_ids(self) -> Sequence[int]:
        """The ids that may be drawn, ascending: text only, no special, padding or untrained ids."""

    @abstractmethod
    def _bytes(self, token_id: int) -> bytes:
        """The bytes that an id adds to a text; none for special tokens and ids past the vocabulary."""

    def goes_on(self, before: int, token_id: int) -> bool:
        """Whether a token continues the word of the token `before` it; false if the vocabulary does not say."""
        return False

    def opens_text(self, token_id: int) -> bool:
        """Whether an id has a leading space only because texts are encoded as if behind a space."""
        return False

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of ids. Special tokens give no text; broken UTF-8 gives U+FFFD."""
        decoder = Decoder(self)
        decoder.extend(token_ids)
        return decoder.whole

    def decode_bytes(self, token_ids: Sequence[int]) -> bytes:
        """The joined bytes of ids, which may end inside a character. A first leading space is kept."""
        return b"".join(map(self._known.__getitem__, token_ids))

    def piece(self, token_id: int) -> str:
        """The text of one token for people, or the name of a special token. Bytes of no character are <0xHH>."""
        if token_id in self._names:
            return self._names[token_id]
        raw = self._known[token_id]
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "".join(f"<0x{byte:02X}>" for byte in raw)

    def entry(self, token_id: int) -> str:
        """The spelling of a token in the vocabulary's file, such as `##s` or `Ġthe`; empty for an unused row."""
        return self._names[token_id] if token_id in self._names else self._entry(token_id)

    def _entry(self, token_id: int) -> str:
        """The same of a token that is not special."""
        return self.piece(token_id)

    def sentence(self, token_ids: Sequence[int]) -> str:
        """The text of ids as transformers' tokenizer of the family writes it, without special tokens."""
        return self.decode(token_ids)

    def opened(self, text: str) -> str:
        """A text that begins a document, with what is encoded before it."""
        return f" {text}" if text and self.opens_with_space else text

    def before_mask(self, text: str) -> str:
        """The text that remains of `text` before a mask."""
        return text.rstrip() if self.mask_strips else text

    @property
    def num_pieces(self) -> int:
        """Number of pieces before the special tokens, in the demo's own kind. Raises CheckpointError for other
        kinds."""
        raise CheckpointError("only the demo's kind of tokenizer has num_pieces; use text_ids()")

    @property
    def eos(self) -> int:
        """Id of the end of a text. Raises CheckpointError if there is none."""
        return self._role("eos")

    @property
    def cls(self) -> int:
        """Id of the start of a text. Raises CheckpointError if there is none."""
        return self._role("cls")

    @property
    def sop(self) -> int:
        """Id of the start of a span. Raises CheckpointError if there is none."""
        return self._role("sop")

    @property
    def eop(self) -> int:
        """Id of the end of a span. Raises CheckpointError if there is none."""
        return self._role("eop")

    def _role(self, role: str) -> int:
        if role not in self.special:
            raise CheckpointError(f"this tokenizer has no {role} token; it has {', '.join(self.special)}")
        return self.special[role]


def role_of(name: str) -> str:
    """The role of a special token's spelling: [gMASK] → gmask, <|startofpiece|> → sop, <|user|> → user."""
    plain = name.strip("[]<>|").lower()
    return _ROLES.get(plain, plain)


def roles_of(ids: Mapping[str, int]) -> dict[str, int]:
    """Role → id of these special tokens."""
    return {role_of(name): i for name, i in ids.items()}
