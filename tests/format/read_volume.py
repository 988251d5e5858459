"""Reads a volume without kmsfs: an independent implementation of src/manual/format.md, for the tests.

    read_volume.py VOLUME KEYFILE

Verifies the volume record, walks the tree, opens every name, link, attribute and file, and prints one JSON object

    {PATH: {"type": …, "size": …, "sha256": … | "target": …, "xattrs": {NAME: VALUE}}}

where bytes are written as Latin-1 text (one character for each byte) and PATH has no leading slash. Exits with 1 and
a message at the first thing that does not authenticate or has a form that format.md does not allow.

It reads volumes that were shut down cleanly: it does not replay the journal, and refuses a volume that needs it.
"""

import base64
import hashlib
import json
import os
import stat
import struct
import sys

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV

PAGE = 4096
BLOCK = 12288
ENTRY = 40
HEADER_ENTRIES = 64
BLOCK_ENTRIES = 256
FANOUT = 64
NO_BLOCK = bytes(32)
ACLS = ("system.posix_acl_access", "system.posix_acl_default")


class Wrong(Exception):
    """Something is not as it has to be."""


def check(condition, what):
    if not condition:
        raise Wrong(what)


class Fields:
    """Little-endian fields, one after the other."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        check(self.at + count <= len(self.data), "it is too short")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, size):
        return int.from_bytes(self.take(size), "little")

    def zeros(self, count):
        check(self.take(count) == bytes(count), "reserved bytes are not zero")


def kdf(context, material, length=32):
    return blake3(material, derive_key_context=context).digest(length)


def mac(key, message):
    return blake3(message, key=key).digest()


def unbase64url(text):
    """Strict: what decodes must encode to the same text."""
    try:
        raw = base64.b64decode(text + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError as error:
        raise Wrong(f"not base64url: {error}") from error
    check(base64url(raw) == text, "not canonical base64url")
    return raw


def base64url(raw):
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


class Xaes:
    """XAES-256-GCM."""

    def __init__(self, key):
        self.aes = Cipher(algorithms.AES(key), modes.ECB())
        block = int.from_bytes(self.encrypt(bytes(16)), "big")
        doubled = (block << 1) & (1 << 128) - 1
        self.k1 = doubled ^ (0x87 if block >> 127 else 0)
        self.derived = {}

    def encrypt(self, block):
        encryptor = self.aes.encryptor()
        return encryptor.update(block) + encryptor.finalize()

    def open(self, nonce, aad, ciphertext_and_tag):
        prefix = nonce[:12]
        if prefix not in self.derived:
            halves = (bytes([0, counter, 0x58, 0]) + prefix for counter in (1, 2))
            masked = ((int.from_bytes(half, "big") ^ self.k1).to_bytes(16, "big") for half in halves)
            self.derived[prefix] = AESGCM(b"".join(map(self.encrypt, masked)))
        return self.derived[prefix].decrypt(nonce[12:], ciphertext_and_tag, aad)

    def open_value(self, aad, sealed):
        check(len(sealed) >= 40, "a sealed value is too short")
        return self.open(sealed[:24], aad, sealed[24:])


class LocalKek:
    """The raw key in a file."""

    def __init__(self, path):
        with open(path, "rb") as file:
            text = file.read()
        text = text[:-1] if text.endswith(b"\n") else text
        check(len(text) == 44, "the key file does not hold 44 characters")
        self.key = base64.b64decode(text, validate=True)
        check(len(self.key) == 32 and any(self.key), "the key file holds no key")

    def fingerprint(self):
        return kdf("kmsfs 2026 local kek fingerprint v1", self.key)[:8].hex()

    def unwrap(self, kek_id, algorithm, blob, volume_id):
        check(algorithm == 2, f"wrap algorithm {algorithm} is not the local one")
        check(len(blob) == 72, "a wrapped secret has the wrong length")
        check(kek_id.startswith("file:"), "the KEK is not a local one")
        check(kek_id.rpartition("#")[2] == self.fingerprint(), f"another key wrapped: {kek_id}")
        key = kdf("kmsfs 2026 local wrap v1", self.key + blob[:12])
        return AESGCM(key).decrypt(blob[12:24], blob[24:], volume_id)


class Record:
    """volume.kmsfs"""

    def __init__(self, data, kek):
        check(54 + 32 < len(data) <= 65536, "wrong length")
        fields = Fields(data[:-32])
        check(fields.take(8) == b"kmsfs/V\0", "wrong magic")
        version = fields.number(2)
        check(version == 1, f"version {version}")
        log2 = fields.number(1)
        check(12 <= log2 <= 20, "impossible chunk size")
        self.chunk_log2, self.chunk = log2, 1 << log2
        fields.zeros(1)
        features = fields.number(4)
        check(features & ~3 == 0, f"unknown features {features:#x}")
        self.plain_names = features & 1 == 1
        self.id = fields.take(16)
        check(fields.number(4) > 0, "no files per envelope")
        self.kek_floor = fields.number(4)
        self.epoch_floor = fields.number(4)
        fields.number(8)
        count = fields.number(2)
        check(1 <= count <= 64, "impossible number of KEKs")
        self.keks, self.roles = {}, {}
        newest = None
        for _ in range(count):
            generation, role, algorithm = fields.number(4), fields.number(1), fields.number(1)
            lengths = [fields.number(2) for _ in range(3)]
            check(role in (0, 1) and algorithm in (1, 2), "impossible role or algorithm")
            check(all(1 <= n <= 1024 for n in lengths[:2]) and 1 <= lengths[2] <= 512, "impossible length")
            reference, kek_id = fields.take(lengths[0]), fields.take(lengths[1])
            reference.decode()
            blob = fields.take(lengths[2])
            check(not self.keks or generation > max(self.keks), "KEKs are not in order")
            self.keks[generation], self.roles[generation] = kek_id.decode(), role
            if role == 0:
                newest = (kek_id.decode(), algorithm, blob)
        if features & 2:
            check(fields.number(4) > self.epoch_floor and fields.number(4) <= 2, "impossible epochs")
        check(fields.at == len(fields.data), "bytes left over")
        check(newest is not None, "no primary KEK")
        self.volume_key = kek.unwrap(*newest, self.id)
        record_mac = kdf("kmsfs v1 2026-11 volume record MAC, BLAKE3 keyed", self.volume_key)
        check(mac(record_mac, data[:-32]) == data[-32:], "its MAC does not match")


class Layout:
    """Where things lie, for a chunk size."""

    def __init__(self, chunk):
        self.chunk = chunk

    def chunks(self, length):
        return -(-length // self.chunk)

    def blocks(self, length):
        return -(-max(self.chunks(length) - HEADER_ENTRIES, 0) // BLOCK_ENTRIES)

    def block_at(self, number):
        return PAGE + HEADER_ENTRIES * self.chunk + number * (BLOCK + BLOCK_ENTRIES * self.chunk)

    def chunk_at(self, index):
        if index < HEADER_ENTRIES:
            return PAGE + index * self.chunk
        block, number = divmod(index - HEADER_ENTRIES, BLOCK_ENTRIES)
        return self.block_at(block) + BLOCK + number * self.chunk

    def stored(self, length):
        last = self.chunks(length) - 1
        return PAGE if last < 0 else self.chunk_at(last) + length - last * self.chunk


class StoredFile:
    """A regular file of the tree."""

    def __init__(self, volume, file):
        self.volume, self.file = volume, file
        record = volume.record
        page = os.pread(file, PAGE, 0)
        check(len(page) == PAGE, "there is no header")
        fields = Fields(page)
        check(fields.take(8) == b"kmsfs/F\0", "wrong magic")
        version = fields.number(2)
        check(version == 1, f"version {version}")
        features = fields.number(2)
        check(features & ~1 == 0, f"unknown features {features:#x}")
        check(fields.number(1) == record.chunk_log2, "another chunk size than the volume's")
        fields.zeros(3)
        self.id, self.epoch = fields.take(16), fields.number(4)
        slots = [self.slot(fields), self.slot(fields)]
        watermark = fields.number(8)
        self.length = fields.number(8)
        check(self.length <= 1 << 60, "impossible length")
        fields.number(8)
        fields.number(8)
        self.root = fields.take(32)
        fields.number(8)
        fields.zeros(4)
        blobs = []
        for _, _, size in slots:
            blobs.append(fields.take(size))
            fields.zeros(512 - size)
        previous_epoch = fields.number(4)
        fields.zeros(4)
        end, sealed = fields.number(8), fields.take(72)
        fields.zeros(264)
        check(fields.at == 1504, "this reader is wrong")
        if features & 1:
            check(watermark < end <= 1 << 60 and previous_epoch < self.epoch, "impossible watermark")
        else:
            check((watermark, previous_epoch, end) == (0, 0, 0) and not any(sealed), "reserved bytes are not zero")
        (generation, algorithm, size), blob = slots[0], blobs[0]
        check(size > 0, "no envelope")
        check(generation >= record.kek_floor and self.epoch >= record.epoch_floor, "older than the volume accepts")
        check(generation in record.keks, "its KEK is none of the volume's")
        check(record.roles[generation] == 0, "its KEK is no primary one")
        if slots[1][2] > 0:
            check(record.roles.get(slots[1][0]) == 1, "its second KEK is no recovery one of the volume's")
        secret = volume.envelope(generation, algorithm, blob)
        material = secret + record.volume_key + record.id + self.id + struct.pack("<I", self.epoch)
        dek = kdf("kmsfs v1 2026-11 file DEK", material)
        self.now = self.previous = (self.epoch, *self.keys(dek))
        self.held = range(watermark, end)
        header_key = kdf("kmsfs v1 2026-11 file header MAC, BLAKE3 keyed", dek)
        check(mac(header_key, page[:1504] + bytes(32) + page[1536:]) == page[1504:1536], "the header's MAC does not match")
        if features & 1:
            seal = Xaes(kdf("kmsfs v1 2026-11 file previous DEK, XAES-256-GCM", dek))
            aad = record.id + self.id + struct.pack("<II", previous_epoch, self.epoch)
            try:
                self.previous = (previous_epoch, *self.keys(seal.open_value(aad, sealed)))
            except InvalidTag as error:
                raise Wrong("the previous DEK does not verify") from error
        self.page = page
        self.layout = Layout(record.chunk)
        stored = os.fstat(file).st_size
        check(stored == self.layout.stored(self.length), f"stored length {stored} does not fit length {self.length}")
        self.blocks = {}

    @staticmethod
    def keys(dek):
        """What opens chunks, and what authenticates tag blocks."""
        cipher = Xaes(kdf("kmsfs v1 2026-11 file chunks, XAES-256-GCM", dek))
        return cipher, kdf("kmsfs v1 2026-11 file tag block MAC, BLAKE3 keyed", dek)

    def of_chunk(self, index):
        """Epoch, cipher and key of tag blocks that hold for a chunk."""
        return self.previous if index in self.held else self.now

    @staticmethod
    def slot(fields):
        generation, algorithm = fields.number(4), fields.number(1)
        fields.zeros(1)
        size = fields.number(2)
        empty = (generation, algorithm, size) == (0, 0, 0)
        check(empty or (algorithm in (1, 2) and 1 <= size <= 512), "impossible envelope")
        return generation, algorithm, size

    def block(self, number):
        """A tag block, None if it does not exist."""
        if number not in self.blocks:
            if number == 0:
                expected = self.root
            else:
                above = self.block((number - 1) // FANOUT)
                at = BLOCK_ENTRIES * ENTRY + (number - 1) % FANOUT * 32
                expected = NO_BLOCK if above is None else above[at : at + 32]
            if expected == NO_BLOCK:
                self.blocks[number] = None
            else:
                data = os.pread(self.file, BLOCK, self.layout.block_at(number))
                check(len(data) == BLOCK, f"tag block {number} is cut")
                tags_key = self.of_chunk(HEADER_ENTRIES + number * BLOCK_ENTRIES)[2]
                found = mac(tags_key, data + struct.pack("<Q", number))
                check(found == expected, f"tag block {number} does not verify")
                self.blocks[number] = data
        return self.blocks[number]

    def entry(self, index):
        if index < HEADER_ENTRIES:
            return self.page[1536 + index * ENTRY :][:ENTRY]
        block, number = divmod(index - HEADER_ENTRIES, BLOCK_ENTRIES)
        data = self.block(block)
        return bytes(ENTRY) if data is None else data[number * ENTRY :][:ENTRY]

    def content(self):
        """The plaintext, chunk by chunk."""
        for index in range(self.layout.chunks(self.length)):
            size = min(self.layout.chunk, self.length - index * self.layout.chunk)
            entry = self.entry(index)
            if entry == bytes(ENTRY):
                yield bytes(size)
                continue
            sealed = os.pread(self.file, size, self.layout.chunk_at(index))
            check(len(sealed) == size, f"chunk {index} is cut")
            epoch, cipher, _ = self.of_chunk(index)
            aad = self.volume.record.id + self.id + struct.pack("<IQ", epoch, index)
            try:
                yield cipher.open(entry[:24], aad, sealed + entry[24:])
            except InvalidTag as error:
                raise Wrong(f"chunk {index} does not verify") from error
        self.check_rest()

    def check_rest(self):
        """Beyond the end there are no entries and no blocks."""
        chunks, blocks = self.layout.chunks(self.length), self.layout.blocks(self.length)
        for index in range(chunks, HEADER_ENTRIES):
            check(self.entry(index) == bytes(ENTRY), f"chunk {index} lies beyond the end")
        if blocks == 0:
            check(self.root == NO_BLOCK, "there is a root without a tag block")
        for number in range(blocks):
            data = self.block(number)
            first = HEADER_ENTRIES + number * BLOCK_ENTRIES
            for index in range(max(chunks, first), first + BLOCK_ENTRIES):
                check(self.entry(index) == bytes(ENTRY), f"chunk {index} lies beyond the end")
            for position in range(FANOUT):
                if data is not None and number * FANOUT + 1 + position >= blocks:
                    at = BLOCK_ENTRIES * ENTRY + position * 32
                    check(data[at : at + 32] == NO_BLOCK, f"tag block {number} has children beyond the end")


class Volume:
    """A volume directory and what it holds."""

    def __init__(self, path, key_path):
        self.path, self.kek = os.fsencode(path), LocalKek(key_path)
        with open(os.path.join(self.path, b"volume.kmsfs"), "rb") as file:
            try:
                self.record = Record(file.read(65537), self.kek)
            except (Wrong, InvalidTag, UnicodeDecodeError) as error:
                raise Wrong(f"volume.kmsfs: {error or 'the volume key does not unwrap'}") from error
        key = self.record.volume_key
        self.names = AESSIV(kdf("kmsfs v1 2026-11 volume names, AES-256-SIV", key, 64))
        self.long_names = kdf("kmsfs v1 2026-11 volume long name hash, BLAKE3 keyed", key)
        self.symlinks = Xaes(kdf("kmsfs v1 2026-11 volume symbolic links, XAES-256-GCM", key))
        self.xattr_names = AESSIV(kdf("kmsfs v1 2026-11 volume xattr names, AES-256-SIV", key, 64))
        self.xattr_values = Xaes(kdf("kmsfs v1 2026-11 volume xattr values, XAES-256-GCM", key))
        self.envelopes = {}
        self.check_journal()

    def check_journal(self):
        """Nothing to recover: the newest log says that it is clean, and no batch waits to be checked."""
        newest = None
        for name in (b"log-a", b"log-b"):
            try:
                with open(os.path.join(self.path, b"journal", name), "rb") as file:
                    page = file.read(PAGE)
            except FileNotFoundError:
                continue
            if len(page) < PAGE or page[:8] != b"kmsfs/J\0" or blake3(page[:4064]).digest() != page[4064:]:
                continue
            version = int.from_bytes(page[8:10], "little")
            check(version in (1, 2), f"journal: version {version}")
            clean, sequence = page[10], int.from_bytes(page[16:24], "little")
            crashed = int.from_bytes(page[32:36], "little")
            if newest is None or sequence > newest[0]:
                newest = (sequence, clean == 1, crashed)
        check(newest is None or newest[1:] == (True, 0), "journal: the volume was not shut down cleanly")

    def envelope(self, generation, algorithm, blob):
        where = (generation, algorithm, blob)
        if where not in self.envelopes:
            try:
                self.envelopes[where] = self.kek.unwrap(self.record.keks[generation], algorithm, blob, self.record.id)
            except InvalidTag as error:
                raise Wrong("the envelope does not unwrap") from error
        return self.envelopes[where]

    def directory_id(self, path):
        if self.record.plain_names:
            return None
        target = os.readlink(os.path.join(path, b".id"))
        check(len(target) == 32, "the directory's id has the wrong length")
        return bytes.fromhex(target.decode("ascii"))

    def name(self, path, directory, entry):
        """The name of an entry, None for kmsfs's own."""
        if directory is None:
            return entry
        if entry == b".id" or entry.startswith((b".N", b".t")):
            return None
        full = entry
        if entry.startswith(b".L"):
            full = os.readlink(os.path.join(path, b".N" + entry[2:]))
            check(base64url(mac(self.long_names, full)) == entry[2:], "the side entry is of another name")
        check(not full.startswith(b"."), "a foreign entry")
        try:
            name = self.names.decrypt(unbase64url(full), [directory])
        except InvalidTag as error:
            raise Wrong("its name does not verify") from error
        check(1 <= len(name) <= 255 and name not in (b".", b".."), "its name cannot be one")
        check(b"/" not in name and b"\0" not in name, "its name cannot be one")
        check((len(name) > 175) == entry.startswith(b".L"), "its name has the wrong form")
        return name

    def target(self, path):
        target = os.readlink(path)
        if target.startswith(b"."):
            check(len(target) == 33, "a long target's name has the wrong length")
            bytes.fromhex(target[1:].decode("ascii"))
            with open(os.path.join(self.path, b"links", target[1:]), "rb") as file:
                sealed = file.read()
        else:
            sealed = unbase64url(target)
        try:
            return self.symlinks.open_value(b"", sealed)
        except InvalidTag as error:
            raise Wrong("the link's target does not verify") from error

    def xattrs(self, path):
        found = {}
        for stored in os.listxattr(path, follow_symlinks=False):
            value = os.getxattr(path, stored, follow_symlinks=False)
            if stored in ACLS:
                found[stored] = value.decode("latin-1")
            elif stored.startswith(("user.kmsfs.", "trusted.kmsfs.")):
                try:
                    sealed = unbase64url(os.fsencode(stored.partition(".kmsfs.")[2]))
                    name = self.xattr_names.decrypt(sealed, [b""])
                    found[name.decode("latin-1")] = self.xattr_values.open_value(name, value).decode("latin-1")
                except InvalidTag as error:
                    raise Wrong("an extended attribute does not verify") from error
        return found

    def read(self, path):
        """What an inode of the tree is."""
        status = os.lstat(path)
        kinds = {stat.S_IFDIR: "directory", stat.S_IFREG: "file", stat.S_IFLNK: "symlink"}
        result = {"type": kinds.get(stat.S_IFMT(status.st_mode), "node")}
        if result["type"] == "symlink":
            target = self.target(path)
            result |= {"size": len(target), "target": target.decode("latin-1")}
        elif result["type"] == "file":
            file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                stored = StoredFile(self, file)
                digest = hashlib.sha256()
                for piece in stored.content():
                    digest.update(piece)
            finally:
                os.close(file)
            result |= {"size": stored.length, "sha256": digest.hexdigest()}
        result["xattrs"] = self.xattrs(path)
        return result

    def walk(self, path, above, found):
        directory = self.directory_id(path)
        for entry in sorted(os.listdir(path)):
            stored = os.path.join(path, entry)
            try:
                name = self.name(path, directory, entry)
                if name is None:
                    continue
                shown = above + name
                found[shown.decode("latin-1")] = result = self.read(stored)
            except (Wrong, OSError, UnicodeDecodeError, ValueError) as error:
                raise Wrong(f"{os.path.relpath(stored, self.path).decode('latin-1')}: {error}") from error
            if result["type"] == "directory":
                self.walk(stored, shown + b"/", found)


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        volume = Volume(sys.argv[1], sys.argv[2])
        tree = os.path.join(volume.path, b"tree")
        found = {}
        volume.walk(tree, b"", found)
    except (Wrong, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    json.dump(found, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
