"""Tells text from other files by their first bytes, whatever their names say."""

import codecs

AS_UTF8 = "save it as UTF-8 (iconv -f {encoding} -t UTF-8 FILE > NEW)"
# (first bytes, what the file is, the remedy). UTF-32 comes before UTF-16, because its mark begins
# with the mark of UTF-16.
BEGINNINGS = (
    (codecs.BOM_UTF32_LE, "text in UTF-32", AS_UTF8.format(encoding="UTF-32")),
    (codecs.BOM_UTF32_BE, "text in UTF-32", AS_UTF8.format(encoding="UTF-32")),
    (codecs.BOM_UTF16_LE, "text in UTF-16", AS_UTF8.format(encoding="UTF-16")),
    (codecs.BOM_UTF16_BE, "text in UTF-16", AS_UTF8.format(encoding="UTF-16")),
    (b"PAR1", "a parquet file", "call it .parquet, and its column text_field is read"),
    (
        b"PK\x03\x04",
        "a zip archive (as .docx, .xlsx and .npz are)",
        "save what is in it as plain text, or a table as .csv",
    ),
    (b"PK\x05\x06", "an empty zip archive", "give a file of text"),
    (b"%PDF-", "a PDF", "save its text as plain text"),
    (b"{\\rtf", "rich text (RTF)", "save it as plain text"),
    (b"\xd0\xcf\x11\xe0", "an old Office document", "save it as plain text, or a table as .csv"),
    (b"\x1f\x8b", "compressed by gzip", "call it .gz, and it is decompressed"),
    (b"BZh", "compressed by bzip2", "call it .bz2, and it is decompressed"),
    (b"\xfd7zXZ\x00", "compressed by xz", "call it .xz, and it is decompressed"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "decompress it"),
    (b"\x04\x22\x4d\x18", "compressed by lz4", "decompress it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "decompress it"),
    (b"Rar!\x1a\x07", "a RAR archive", "decompress it"),
    (b"\x89PNG\r\n", "an image", "give a file of text"),
    (b"\xff\xd8\xff", "an image", "give a file of text"),
    (b"GIF8", "an image", "give a file of text"),
    (b"\x93NUMPY", "an array of numpy", "give a file of text"),
    (b"SQLite format 3\x00", "a database", "save its text as plain text, or a table as .csv"),
    *(
        (bytes((0x80, protocol)), "a pickle", "save its text as plain text or JSON Lines")
        for protocol in range(2, 6)
    ),
)
# A text may begin with "BZh". In a bzip2 file one of these follows that mark and a digit.
BZIP2_BLOCK = (b"1AY&SY", b"\x17rE8P\x90")


def not_text(head: bytes) -> tuple[str, str] | None:
    """What a file that begins with `head` is, and the remedy; None if it may be text.

    Text in UTF-8 or Latin-1 holds no NUL bytes. We forgive a single one among a hundred others.
    """
    for beginning, what, remedy in BEGINNINGS:
        if head.startswith(beginning) and (beginning != b"BZh" or head[4:10] in BZIP2_BLOCK):
            return what, remedy
    nuls = head.count(b"\0")
    if nuls > 1 or nuls * 100 > len(head):
        return (
            f"no text: it holds NUL bytes, the first at byte {head.index(0)}",
            "give a file of text, and save text in UTF-16 or UTF-32 as UTF-8",
        )
    return None
