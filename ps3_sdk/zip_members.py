"""The members of a bundle: a ZIP that stores, one member after another, and nothing else.

Only one layout is accepted, so that every reader sees the same bytes under the same names: no compression, no encryption, no
comments, flat names, local headers that repeat the directory, data at multiples of 64, no byte between members that is not
accounted for. Source: APPNOTE.TXT 6.3.10, PKWARE; 64-bit sizes as in its section 4.5.3.
"""
import re
import struct
from typing import NamedTuple

from .errors import BundleError

ALIGNMENT = 64
ZIP64_EXTRA, ALIGNMENT_EXTRA = 0x0001, 0xD935      # the second: as Android's zipalign writes it
MAX_MEMBERS = 64
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

END = struct.Struct("<4s4H2LH")                     # signature, disks, entries, size and offset of the directory, comment
END64 = struct.Struct("<4sQ2H2L4Q")
LOCATOR = struct.Struct("<4sLQL")
CENTRAL = struct.Struct("<4s6H3L5H2L")
LOCAL = struct.Struct("<4s5H3L2H")
FULL16, FULL32 = 0xFFFF, 0xFFFFFFFF
AGAIN = "Copy the file again, or export it again."


class Member(NamedTuple):
    """offset: of the data, in the file | size: bytes | crc: CRC-32 of the data."""
    name: str
    offset: int
    size: int
    crc: int


def read_members(data: memoryview, where: str) -> dict[str, Member]:
    """Every member of the bundle in `data`, in file order. `where` names the file in errors.

    Raises: BundleError, saying which rule is broken and by which member. Contents are not read.
    """
    if len(data) < END.size or data[:4] != b"PK\x03\x04":
        raise BundleError(f"{where} is not a bundle: {len(data)} bytes, starting with {bytes(data[:8])!r}; an engine.plan is a ZIP. "
                          "Check that this is the right file and that it was copied whole.")
    try:
        count, start, stop = _directory(data, where)
        members, cursor, directory = {}, 0, start
        for _ in range(count):
            if start + CENTRAL.size > stop:
                raise _bad(where, "its directory ends too early")
            member, header_offset, start = _entry(data, start, where)
            if header_offset != cursor:
                raise _bad(where, f"member {member.name} {'overlaps the one before it' if header_offset < cursor else 'follows a hole'} "
                                  f"(at byte {header_offset}, expected at {cursor})")
            if member.name.lower() in (name.lower() for name in members):
                raise _bad(where, f"two members are named {member.name}")
            member = _local(data, header_offset, member, where)
            members[member.name] = member
            cursor = member.offset + member.size
        if start != stop:
            raise _bad(where, "its directory does not end where it says")
        if cursor != directory:
            raise _bad(where, "bytes that belong to no member stand before the directory")
    except struct.error as error:
        raise _bad(where, f"a header runs past the end of the file ({error})") from error
    return members


def _bad(where: str, what: str) -> BundleError:
    return BundleError(f"{where} is damaged or was not made by this exporter: {what}. {AGAIN}")


def _directory(data, where):
    """(number of entries, first byte, end) of the central directory."""
    end = len(data) - END.size
    signature, disk, start_disk, here, count, size, offset, comment = END.unpack_from(data, end)
    if signature != b"PK\x05\x06":
        raise _bad(where, "it does not end in a ZIP directory, so it was cut off or something was appended")
    if disk or start_disk or here != count or comment:
        raise _bad(where, "its end record names other volumes or a comment")
    if FULL16 in (here, count) or FULL32 in (size, offset):
        short = (count, size, offset)
        signature, disk, record, total = LOCATOR.unpack_from(data, end - LOCATOR.size) if end >= LOCATOR.size else (b"", 0, 0, 0)
        end -= LOCATOR.size + END64.size
        if signature != b"PK\x06\x07" or record != end or disk or total != 1:
            raise _bad(where, "its 64-bit end record is missing")
        signature, length, _, _, disk, start_disk, here, count, size, offset = END64.unpack_from(data, end)
        if signature != b"PK\x06\x06" or length != END64.size - 12 or disk or start_disk or here != count:
            raise _bad(where, "its 64-bit end record is malformed")
        if any(a not in (b, FULL16 if i == 0 else FULL32) for i, (a, b) in enumerate(zip(short, (count, size, offset)))):
            raise _bad(where, "its two end records disagree")
    if offset + size != end:
        raise _bad(where, "its directory does not stand right before its end record")
    if not 1 <= count <= MAX_MEMBERS:
        raise _bad(where, f"it has {count} members, where 1 to {MAX_MEMBERS} are possible")
    return count, offset, end


def _entry(data, start, where):
    """(Member with the offset still unknown, offset of its local header, next entry) of the directory entry at `start`."""
    (signature, _, _, flags, method, _, _, crc, packed, size, name_length, extra_length, comment, disk, _, attributes,
     offset) = CENTRAL.unpack_from(data, start)
    if signature != b"PK\x01\x02":
        raise _bad(where, f"its directory is broken at byte {start}")
    name_end = start + CENTRAL.size + name_length
    name = _name(bytes(data[start + CENTRAL.size:name_end]), where)
    _check_storage(name, flags, method, where)
    mode = attributes >> 16 & 0o170000
    if mode not in (0, 0o100000) or attributes & 0x10:
        raise _bad(where, f"member {name} is a {'link' if mode == 0o120000 else 'folder or special file'}; members are plain files")
    if comment or disk:
        raise _bad(where, f"member {name} has a comment or lies on another volume")
    extra = _extra(bytes(data[name_end:name_end + extra_length]), (ZIP64_EXTRA,), name, where)
    size, packed, offset = _widen((size, packed, offset), extra, name, where)
    if size != packed:
        raise _bad(where, f"member {name} is stored and yet has two sizes, {packed} and {size}")
    return Member(name, -1, size, crc), offset, name_end + extra_length


def _local(data, start, member, where):
    """The member with the offset of its data, once its local header agrees with the directory."""
    signature, _, flags, method, _, _, crc, packed, size, name_length, extra_length = LOCAL.unpack_from(data, start)
    name_end = start + LOCAL.size + name_length
    if signature != b"PK\x03\x04" or bytes(data[start + LOCAL.size:name_end]) != member.name.encode():
        raise _bad(where, f"the local header of member {member.name} is not where the directory says, or has another name")
    _check_storage(member.name, flags, method, where)
    extra = _extra(bytes(data[name_end:name_end + extra_length]), (ZIP64_EXTRA, ALIGNMENT_EXTRA), member.name, where)
    size, packed = _widen((size, packed), extra, member.name, where)
    if (size, packed, crc) != (member.size, member.size, member.crc):
        raise _bad(where, f"the local header of member {member.name} says {packed} bytes, the directory {member.size}, or their checksums differ")
    offset = name_end + extra_length
    if offset + size > len(data):
        raise _bad(where, f"member {member.name} of {size} bytes runs past the end of the file")
    if offset % ALIGNMENT:
        raise _bad(where, f"member {member.name} starts at byte {offset}, which is no multiple of {ALIGNMENT}")
    return member._replace(offset=offset)


def _name(raw, where):
    name = raw.decode("ascii", "backslashreplace")
    if not NAME.fullmatch(name):
        raise _bad(where, f"member name {name[:80]!r} is not a plain file name (no folders, no '..', no absolute path; ASCII letters, digits "
                          "and ._-)")
    return name


def _check_storage(name, flags, method, where):
    if flags & 1:
        raise _bad(where, f"member {name} is encrypted; members are stored as they are")
    if method:
        raise _bad(where, f"member {name} is compressed (method {method}); members are stored as they are")
    if flags:
        raise _bad(where, f"member {name} has the flags {flags:#06x}; none are used")


def _extra(raw, known, name, where):
    """{id: bytes} of an extra field."""
    found, start = {}, 0
    while start < len(raw):
        if start + 4 > len(raw):
            raise _bad(where, f"the extra field of member {name} is broken")
        kind, length = struct.unpack_from("<2H", raw, start)
        if kind not in known or kind in found or start + 4 + length > len(raw):
            raise _bad(where, f"the extra field of member {name} is broken or of an unknown kind ({kind:#06x})")
        found[kind] = raw[start + 4:start + 4 + length]
        start += 4 + length
    return found


def _widen(values, extra, name, where):
    """The values, with those that are full replaced, in order, by the 64-bit ones of the extra field."""
    raw = extra.get(ZIP64_EXTRA, b"")
    if len(raw) != 8 * sum(value == FULL32 for value in values):
        raise _bad(where, f"the 64-bit sizes of member {name} do not fit its 32-bit ones")
    wide = iter(struct.unpack(f"<{len(raw) // 8}Q", raw))
    return tuple(next(wide) if value == FULL32 else value for value in values)
