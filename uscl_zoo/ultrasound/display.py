"""Samples of DICOM as they ask to be shown: in 8 bits, by palette, look-up tables and window."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .acquisition import numbers
from .headers import expand_segments, is_long, items
from .pixels import Picture, Stated

if TYPE_CHECKING:
    from pydicom import Dataset


#: Where headers of the newer kind keep what older ones have at the top: of all frames, of each.
GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_IN_GROUPS = (
    ("FrameVOILUTSequence", ("WindowCenter", "WindowWidth", "VOILUTFunction"), "windows"),
    ("PixelValueTransformationSequence", ("RescaleSlope", "RescaleIntercept"), "scales"),
)


def of_groups(header: Dataset) -> list[str]:
    """Put window and rescale of the functional groups where a header without these has them.

    Returns:
        What cannot be shown as it asks, a line each.
    """
    long = any(is_long(header, name) for name in GROUPS)
    notes = ["its functional groups are too long to be looked into"] if long else []
    groups = [group for name in GROUPS for group in items(header, name)]
    for sequence, keywords, words in _IN_GROUPS:
        parts = [group.get(sequence) for group in groups]
        stated = [tuple(each[0].get(keyword) for keyword in keywords) for each in parts if each]
        if not stated or any(keyword in header for keyword in keywords):
            continue
        for keyword, value in zip(keywords, stated[0], strict=True):
            if value is not None:
                setattr(header, keyword, value)
        if any(each != stated[0] for each in stated):
            notes.append(f"its frames have {words} of their own; all are shown by the first")
    return notes


class _Form(NamedTuple):
    """How samples of one kind become 8 bits.

    Attributes:
        shift: bits below those that count.
        bits: that count.
        signed: whether the uppermost of them is a sign.
        mask: of the bits that count before the shift, where others hold an overlay; else None.
        lowest: value that `table` begins with.
        table: uint8, of all values; (n,), or (n, 3) of a palette.
    """

    shift: int
    bits: int
    signed: bool
    mask: int | None
    lowest: int
    table: NDArray[np.uint8]


class Display:
    """Shows the frames of one file.

    Attributes:
        notes: what was detected instead of what the header says, a line each.
    """

    def __init__(self, header: Dataset, stated: Stated, overlay: int = 0) -> None:
        """Take the header as read.

        Args:
            header: for palette, look-up tables, rescale and window.
            stated: what it says of every frame.
            overlay: bits of a sample that hold overlays, as a mask.
        """
        self.header, self.stated, self.overlay = header, stated, overlay
        self.notes: list[str] = []
        self._forms: dict[tuple[bool, int | None, bool], _Form] = {}

    def learn(self, pictures: list[Picture]) -> None:
        """Look at some frames to see which bits they use, and what range without a window."""
        for key in dict.fromkeys(map(_key, pictures)):
            self._forms[key] = self._settle([each for each in pictures if _key(each) == key])

    def __call__(self, picture: Picture) -> NDArray[np.uint8]:
        """A frame as it is shown: uint8 (h, w) or (h, w, 3)."""
        if _key(picture) not in self._forms:
            self.learn([picture])
        form = self._forms[_key(picture)]
        shown = _show(picture.samples, form)
        if picture.colours != "YBR":
            return shown
        from pydicom.pixels.processing import convert_color_space

        converted: NDArray[np.uint8] = convert_color_space(shown, "YBR_FULL", "RGB")
        return converted

    def _settle(self, pictures: list[Picture]) -> _Form:
        first = pictures[0]
        grey = first.colours == "grey" and self.stated.samples == 1
        shift, bits, mask = 0, first.bits or self.stated.stored, None
        if first.bits is None and self.stated.allocated != self.stated.stored:
            shift, bits, mask = self._align(pictures)
        signed = first.signed or (grey and self.stated.signed)
        lowest = -(2 ** (bits - 1)) if signed else 0
        form = _Form(shift, bits, signed, mask, lowest, np.empty(0, np.uint8))
        values = np.arange(lowest, lowest + 2**bits, dtype=np.int32)
        if grey and self.stated.photometric == "PALETTE COLOR":
            return form._replace(table=_palette(values, self.header))
        # brightness that leaves half of what could be stored unused is almost black
        low, high = 0, 0
        if bits > 8:
            ranges = [_range(each.samples, form) for each in pictures]
            low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
        dark = bits > 8 and 0 < high - low < 2 ** (bits - 1) - 1
        if not grey:
            top = 2 ** max(8, high.bit_length()) - 1 if dark and low >= 0 else int(values[-1])
            if dark:
                self.notes.append(
                    f"its samples of {bits} bits are at most {high}; shown up to {top}"
                )
            return form._replace(table=_scale(values, values[0], top))
        header = _of_values(self.header, bits, signed)
        if numbers(header, "RescaleSlope") == [0]:
            # of which nothing could be seen
            self.notes.append("its RescaleSlope is 0, and is passed over")
            del header.RescaleSlope
            header.pop("RescaleIntercept", None)
        if dark and not _windowed(header):
            self.notes.append(
                f"it has no window, and of {bits} bits uses {low} to {high}; shown by these"
            )
            return form._replace(table=_grey(values, header, (low - lowest, high - lowest)))
        return form._replace(table=_grey(values, header))

    def _align(self, pictures: list[Picture]) -> tuple[int, int, int | None]:
        """Shift, bits and mask of samples that do not fill what is allocated to them."""
        stated = self.stated
        used = 0
        for picture in pictures:
            used |= int(np.bitwise_or.reduce(picture.samples, axis=None))
        used &= ~self.overlay
        spare = stated.allocated - stated.stored
        shift = min(max(stated.high_bit + 1 - stated.stored, 0), spare)
        mask = ~self.overlay if self.overlay else None
        if shift and used < 2**stated.stored and used & (2**shift - 1):
            self.notes.append("its samples are in the lower bits, the header says upper")
            shift = 0
        elif stated.signed or used < 2 ** (stated.stored + shift):
            pass
        elif not used & (2**spare - 1):
            self.notes.append("its samples are in the upper bits, the header says lower")
            shift = spare
        else:
            bits = used.bit_length()
            self.notes.append(f"its samples have {bits} bits, the header says {stated.stored}")
            return 0, bits, mask
        return shift, stated.stored, mask


def _key(picture: Picture) -> tuple[bool, int | None, bool]:
    return picture.colours == "grey", picture.bits, picture.signed


def _values(samples: NDArray[Any], form: _Form) -> NDArray[np.int32]:
    values = samples.astype(np.int32)
    if form.mask is not None:
        values &= form.mask
    values >>= form.shift
    if form.signed:
        spare = 32 - form.bits
        values = values << spare >> spare
    return values


def _range(samples: NDArray[Any], form: _Form) -> tuple[int, int]:
    values = _values(samples, form)
    return int(values.min()), int(values.max())


def _show(samples: NDArray[Any], form: _Form) -> NDArray[np.uint8]:
    whole = form.table.shape == (256,) and not form.shift and not form.signed and form.mask is None
    if whole and samples.dtype == np.uint8 and np.array_equal(form.table, np.arange(256)):
        return samples
    # row by row: indices take eight bytes each
    return np.stack(
        [form.table.take(_values(row, form) - form.lowest, 0, mode="clip") for row in samples]
    )


def _of_values(header: Dataset, bits: int, signed: bool) -> Dataset:
    """The header with the bits there are, and no window that is none."""
    from pydicom import Dataset

    header = Dataset(header)
    header.BitsStored, header.PixelRepresentation = bits, int(signed)
    widths, centres = numbers(header, "WindowWidth"), numbers(header, "WindowCenter")
    # writers that have no window fill in 0
    if not widths or len(widths) > len(centres) or not all(width > 0 for width in widths):
        header.pop("WindowWidth", None)
        header.pop("WindowCenter", None)
    return header


def _windowed(header: Dataset) -> bool:
    return "WindowWidth" in header or bool(header.get("VOILUTSequence"))


def _scale(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    shares = (values.astype(np.float64) - low) / (high - low)
    if not np.isfinite(shares).all():
        raise ValueError("a range that is empty or not finite")
    scaled: NDArray[np.uint8] = np.rint(shares.clip(0, 1) * 255).astype(np.uint8)
    return scaled


def _grey(
    stored: NDArray[Any], header: Dataset, used: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

    values = apply_modality_lut(stored, header)
    shown = apply_voi_lut(values, header)
    # the range that pydicom scales a window to
    low, high = float(values[0]), float(values[-1])
    if header.get("ModalityLUTSequence"):
        low, high = 0, 2 ** header.ModalityLUTSequence[0].LUTDescriptor[2] - 1
    if used is not None:
        low, high = sorted(float(values[place]) for place in used)
    elif shown is values:
        low, high = sorted((low, high))
    elif header.get("VOILUTSequence"):
        low, high = 0, 2 ** header.VOILUTSequence[0].LUTDescriptor[2] - 1
    table = _scale(shown, low, high)
    return 255 - table if header.get("PhotometricInterpretation") == "MONOCHROME1" else table


def _palette(stored: NDArray[Any], header: Dataset) -> NDArray[np.uint8]:
    from pydicom.pixels.processing import apply_color_lut

    entries = header.RedPaletteColorLookupTableDescriptor[0] or 2**16
    order = "<" if header.file_meta.TransferSyntaxUID.is_little_endian else ">"
    for colour in ("Red", "Green", "Blue"):
        keyword = f"{colour}PaletteColorLookupTableData"
        segmented = f"Segmented{keyword}"
        if segmented in header:
            wide = header[f"{colour}PaletteColorLookupTableDescriptor"].value[2] == 16
            held = np.frombuffer(header[segmented].value, f"{order}u2" if wide else np.uint8)
            words = np.array(expand_segments(held.tolist(), wide), "<u2")
            del header[segmented]
        elif keyword in header:
            words = np.frombuffer(header[keyword].value, f"{order}u2").astype("<u2")
            if len(words) < entries:  # two to a word
                words = words.view(np.uint8).astype("<u2")
        else:
            continue
        # apply_color_lut takes words as little endian, and indexes bytes by bytes
        setattr(header, keyword, words[:entries].tobytes())
    table = apply_color_lut(stored, header)
    # 16-bit entries are 8-bit ones shifted or repeated: the high byte is either's. What the
    # descriptor says of their depth is not to be relied on
    shown: NDArray[np.uint8] = (table >> 8 if table.max() > 255 else table).astype(np.uint8)
    return shown
