#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# rot.py - damages one page of an LMDB file, or a sector of any file, as a disk does.
#
#     rot.py DATA.MDB pages                         each page in use: number, kind, table
#     rot.py DATA.MDB KIND[:TABLE] HOW              KIND: meta (the newer), meta-old, branch, leaf, free (a page of LMDB's list of free pages),
#                                                   or a string of bytes that stands in a page (=TEXT: the page that holds it)
#     rot.py FILE @OFFSET HOW                       any file, the sector there
#
# HOW: flip      one bit of what the page says          zero   a sector (512 bytes) of it is zero
#      swap      another page of the same kind instead  cut    the file ends in the middle of it
#      astray    LMDB's own head of the page lies, so that LMDB asserts or runs off
#      stale=F   as it is in the file F, an older copy
# SEED picks the page and the bit. Says what it did. Written from LMDB's file format (lmdb.h, mdb.c of 0.9).
import os, random, struct, sys

PAGE, SECTOR, NONE = 4096, 512, 2**64 - 1


class Lmdb:
    def __init__(self, path):
        self.b = bytearray(open(path, "rb").read())
        metas = [(struct.unpack_from("<Q", self.b, p * PAGE + 144)[0], p) for p in (0, 1)]
        self.newer = max(metas)[1]
        self.pages = []  # (number, kind, table)
        at = self.newer * PAGE + 40
        self.walk(self.root(at), "free")
        for name, root in self.tables(self.root(at + 48)):
            self.walk(root, name)
        self.walk(self.root(at + 48), "main")

    def root(self, at):
        return struct.unpack_from("<Q", self.b, at + 40)[0]

    def nodes(self, n):
        lower = struct.unpack_from("<H", self.b, n * PAGE + 12)[0]
        for i in range((lower - 16) // 2):
            at = n * PAGE + struct.unpack_from("<H", self.b, n * PAGE + 16 + 2 * i)[0]
            lo, hi, flags, ksize = struct.unpack_from("<HHHH", self.b, at)
            yield at, lo | hi << 16, flags, ksize

    def flags(self, n):
        return struct.unpack_from("<H", self.b, n * PAGE + 10)[0]

    def tables(self, n):
        for at, _, flags, ksize in self.nodes(n):
            yield self.b[at + 8:at + 8 + ksize].decode(), self.root(at + 8 + ksize)

    def walk(self, n, table):
        if n == NONE:
            return
        branch = self.flags(n) & 1
        self.pages.append((n, "branch" if branch else "free" if table == "free" else "leaf", table))
        for _, low, flags, _ in self.nodes(n) if branch else ():
            self.walk(low | flags << 32, table)


def pick(path, what):
    if what.startswith("@"):
        return int(what[1:]) // SECTOR * SECTOR, SECTOR, None
    db = Lmdb(path)
    if what in ("meta", "meta-old"):
        return (db.newer if what == "meta" else 1 - db.newer) * PAGE, PAGE, (1 - db.newer if what == "meta" else db.newer) * PAGE
    if what.startswith("="):
        fit = [p[0] for p in db.pages if what[1:].encode() in db.b[p[0] * PAGE:p[0] * PAGE + PAGE]]
        kind = [p[0] for p in db.pages if p[1] == "leaf"]
    else:
        kind, _, table = what.partition(":")
        kind = fit = [p[0] for p in db.pages if p[1] == kind and table in ("", p[2])]
    if not fit:
        sys.exit("no such page")
    n = random.choice(fit)
    others = [k for k in kind if k != n]
    return n * PAGE, PAGE, random.choice(others) * PAGE if others else None


def main():
    path, what, how = sys.argv[1], sys.argv[2], (sys.argv[3:] or [""])[0]
    random.seed(int(os.environ.get("SEED", "1")))
    if what == "pages":
        for p in sorted(Lmdb(path).pages):
            print(*p)
        return
    at, size, other = pick(path, what)
    with open(path, "r+b") as f:
        f.seek(at)
        page = bytearray(f.read(size))
        if how == "flip":
            # Not in a hole: a bit that means nothing proves nothing.
            bit = random.choice([i for i in range(len(page)) if page[i]])
            page[bit] ^= 1 << random.randrange(8)
        elif how == "zero":
            full = [s for s in range(0, len(page), SECTOR) if any(page[s:s + SECTOR])]
            s = random.choice(full)
            page[s:s + SECTOR] = bytes(len(page[s:s + SECTOR]))
        elif how == "swap":
            if other is None:
                sectors = os.path.getsize(path) // SECTOR
                if size != SECTOR or sectors < 2:
                    sys.exit("only one such page")
                other = (at + SECTOR) % (sectors * SECTOR)
            f.seek(other)
            page = f.read(size)
        elif how == "cut":
            end = min(at + size // 2, os.path.getsize(path) // 2) if what.startswith("@") else at + size // 2
            f.truncate(end)
            print(f"{how} at {end}")
            return
        elif how == "astray":
            struct.pack_into("<HH", page, 12, 18 if struct.unpack_from("<H", page, 10)[0] & 1 else 65534, 20)
        elif how.startswith("stale="):
            with open(how[6:], "rb") as old:
                old.seek(at)
                was = old.read(size)
            if len(was) < size or was == page:
                sys.exit("the older file does not differ there")
            page = was
        else:
            sys.exit("how?")
        f.seek(at)
        f.write(page)
    print(f"{how} {what} at {at}")


main()
