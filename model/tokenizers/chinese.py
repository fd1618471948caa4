"""The tokenizer of glm-large-chinese and glm-10b-chinese: sentencepiece's `cog-pretrain.model`, 50,000 pieces.

It has no byte fallback. decode(encode(text)) is lossy: sentencepiece folds compatibility characters (full-width letters
and commas, ① …), replaces newlines, tabs and runs of spaces by one space, drops white space at both ends, and has one
id for all unknown characters, which decodes to ⁇.
"""

from pathlib import Path

import sentencepiece

from model.tokenizers.files import check_roles, read_ids, read_json, read_pieces
from model.tokenizers.interface import roles_of
from model.tokenizers.plain_pieces import SPACE_MARK, PlainPieces

# In the order of their ids from 50000 on (GLM's data_utils/tokenization.py, --fix-command-token).
_ADDED = (
    "<|endoftext|>", "[SEP]", "[CLS]", "[MASK]", "[UNK]", "[UNUSED1]",
    "<|startofpiece|>", "<|endofpiece|>", "[sMASK]", "[gMASK]",
)  # fmt: skip


class ChinesePieces(PlainPieces):
    """Ids of sentencepiece, followed by GLM's tokens.

    glm-10b-chinese was trained with one row, 50007, for <|endofpiece|> and [gMASK]. Its folder on the hub has a copy of
    that row for [gMASK], 50009, so both have the same probability. 50009 is therefore an alias.
    """

    mask_strips = True

    def __init__(
        self, pieces: sentencepiece.SentencePieceProcessor, added: dict[str, int], gmask_is_eop: bool = False
    ) -> None:
        special = roles_of(added)
        super().__init__(
            special | {"pad": special["eos"]},
            # The end of a span goes before [gMASK] where they are one.
            {i: name for name, i in sorted(added.items(), key=lambda item: item[0] == "<|endofpiece|>")},
            pieces.get_piece_size(),
        )
        gmask = special.get("gmask", special["eop"])
        if gmask_is_eop and gmask != special["eop"]:
            self.aliases = {gmask: special["eop"]}
        self._pieces = pieces
        self._num_pieces: int = pieces.get_piece_size()

    @classmethod
    def read(cls, folder: Path) -> "ChinesePieces":
        """Reads `cog-pretrain.model` and, if it exists, `added_tokens.json`. Raises CheckpointError for other content.

        Two options say that [gMASK] shares the end's row: `bad_words_id` in config.json, as in the hub's folder, or
        `{"glm_infill": {"gmask_is_eop": true}}` in tokenizer_config.json. The latter, without an `added_tokens.json`,
        stands for the ids of the original checkpoint.
        """
        pieces = read_pieces(folder / "cog-pretrain.model")
        first: int = pieces.get_piece_size()
        default = {name: first + n for n, name in enumerate(_ADDED)}
        own = read_json(folder / "tokenizer_config.json", {}).get("glm_infill") or {}
        shared = bool(own.get("gmask_is_eop")) if isinstance(own, dict) else False
        if shared:
            default["[gMASK]"] = default["<|endofpiece|>"]
        added = read_ids(folder / "added_tokens.json", default)
        check_roles(roles_of(added), ("eos", "cls", "mask", "sop", "eop"), folder / "added_tokens.json")
        banned = read_json(folder / "config.json", {}).get("bad_words_id") or []
        return cls(pieces, added, shared or (isinstance(banned, list) and added.get("[gMASK]") in banned))

    def opens_text(self, token_id: int) -> bool:
        return bool(self._pieces.id_to_piece(token_id).startswith(SPACE_MARK))
