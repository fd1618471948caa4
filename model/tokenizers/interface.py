"""What every tokenizer can do, and what a new kind has to say: ids of a text, bytes of an id, which ids are text."""

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
    """Plain text to ids and back, special tokens apart: text that spells a special token is text.

    Ids are 0 … `size` - 1. `special` has the special tokens' ids by role (eos, cls, mask, sop, …), as far as the
    vocabulary has them; `masks` those of the masks by name; `ends` the ids that end a span, that of training first.
    `aliases` maps an id that has the same embedding row as another to that one: it is never to be drawn.
    `mask_strips` tells that in the original's layout a mask token swallows the white space to its left,
    `space_lost_behind` is a character behind which `decode` leaves a space out.
    """

    mask_strips = False
    space_lost_behind = ""

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
        """How special tokens are spelled, by id."""
        return self._names

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of a plain text."""

    @abstractmethod
    def text_ids(self) -> Sequence[int]:
        """Ids that stand for text and may be drawn: no special, padding or untrained ones; in ascending order."""

    @abstractmethod
    def _bytes(self, token_id: int) -> bytes:
        """What an id adds to a text; nothing for special tokens and ids past the vocabulary."""

    def goes_on(self, token_id: int) -> bool:
        """Whether a token goes on with the word of the token before it, in a vocabulary that tells."""
        return False

    def opens_text(self, token_id: int) -> bool:
        """Whether an id's leading space is there only because texts are encoded as if a space stood before them."""
        return False

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of ids; special tokens give nothing, broken UTF-8 gives U+FFFD."""
        decoder = Decoder(self)
        decoder.extend(token_ids)
        return decoder.whole

    def decode_bytes(self, token_ids: Sequence[int]) -> bytes:
        """The bytes of ids, one after the other, which may end within a character; a first leading space is kept."""
        return b"".join(map(self._known.__getitem__, token_ids))

    def piece(self, token_id: int) -> str:
        """What one token looks like: its text, or the name of a special token."""
        if token_id in self._names:
            return self._names[token_id]
        raw = self._known[token_id]
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "".join(f"<0x{byte:02X}>" for byte in raw)

    def entry(self, token_id: int) -> str:
        """How the vocabulary's file spells a token, such as `##s` or `Ġthe`; nothing for a row without one."""
        return self._names[token_id] if token_id in self._names else self._entry(token_id)

    def _entry(self, token_id: int) -> str:
        """The same of a token that is not special."""
        return self.piece(token_id)

    def sentence(self, token_ids: Sequence[int]) -> str:
        """The text of ids as transformers' tokenizer of the family writes it, without special tokens."""
        return self.decode(token_ids)

    def before_mask(self, text: str) -> str:
        """What is left of a text that stands before a mask."""
        return text.rstrip() if self.mask_strips else text

    @property
    def num_pieces(self) -> int:
        """Pieces of the demo's own kind, which come before its special tokens."""
        raise CheckpointError("only the demo's kind of tokenizer counts pieces; others have text_ids()")

    @property
    def eos(self) -> int:
        return self._role("eos")

    @property
    def cls(self) -> int:
        return self._role("cls")

    @property
    def sop(self) -> int:
        return self._role("sop")

    @property
    def eop(self) -> int:
        return self._role("eop")

    def _role(self, role: str) -> int:
        if role not in self.special:
            raise CheckpointError(f"this tokenizer has no {role} token; it has {', '.join(self.special)}")
        return self.special[role]


def role_of(name: str) -> str:
    """The role of a special token as it is spelled: [gMASK] → gmask, <|startofpiece|> → sop, <|user|> → user."""
    plain = name.strip("[]<>|").lower()
    return _ROLES.get(plain, plain)


def roles_of(ids: Mapping[str, int]) -> dict[str, int]:
    """Special tokens by role."""
    return {role_of(name): i for name, i in ids.items()}
