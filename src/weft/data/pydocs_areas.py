"""The fixed map from modules of CPython's standard library to areas of its reference manual.

An area is one chapter of the library reference, or a few chapters merged where they are small. Only modules
that every supported Python (3.11 to 3.14) has are listed, so modules removed by PEP 594 and PEP 632,
``lib2to3``, ``imp``, ``asyncore`` and the like are absent; so is ``idlelib``, an application that several
distributions split off.
"""

from __future__ import annotations

#: area -> its modules; the order of the areas is the order of the labels.
AREAS: dict[str, tuple[str, ...]] = {
    "concurrency": (
        "concurrent", "multiprocessing", "queue", "sched", "subprocess", "threading",
    ),
    "data types and numbers": (
        "bisect", "calendar", "collections", "copy", "datetime", "decimal", "enum", "fractions", "functools",
        "graphlib", "heapq", "numbers", "operator", "pprint", "random", "reprlib", "statistics", "types", "weakref",
        "zoneinfo",
    ),
    "development tools": (
        "bdb", "cProfile", "doctest", "ensurepip", "pdb", "profile", "pstats", "pydoc", "timeit", "trace",
        "tracemalloc", "typing", "unittest", "venv", "zipapp",
    ),
    "files and operating system": (
        "argparse", "bz2", "cmd", "configparser", "copyreg", "csv", "ctypes", "curses", "dbm", "filecmp", "fileinput",
        "fnmatch", "getopt", "getpass", "glob", "gzip", "hashlib", "hmac", "io", "linecache", "logging", "lzma",
        "netrc", "optparse", "os", "os.path", "pathlib", "pickle", "platform", "plistlib", "pty", "secrets", "shelve",
        "shlex", "shutil", "sqlite3", "stat", "tarfile", "tempfile", "time", "tomllib", "tty", "zipfile",
    ),
    "graphical interfaces": (
        "tkinter", "turtle", "turtledemo",
    ),
    "internet data": (
        "base64", "email", "html", "json", "mailbox", "mimetypes", "quopri", "xml",
    ),
    "networking": (
        "asyncio", "ftplib", "http", "imaplib", "ipaddress", "poplib", "selectors", "signal", "smtplib", "socket",
        "socketserver", "ssl", "urllib", "uuid", "webbrowser", "wsgiref", "xmlrpc",
    ),
    "runtime": (
        "__future__", "abc", "ast", "code", "codeop", "compileall", "contextlib", "dataclasses", "dis", "importlib",
        "inspect", "keyword", "modulefinder", "opcode", "pickletools", "pkgutil", "py_compile", "pyclbr", "runpy",
        "site", "symtable", "sysconfig", "tabnanny", "tokenize", "traceback", "warnings", "zipimport",
    ),
    "text": (
        "codecs", "difflib", "gettext", "locale", "re", "rlcompleter", "string", "stringprep", "textwrap",
    ),
}  # fmt: skip

#: Files that hold a module's Python source under another name; where several exist, all are read.
SOURCES: dict[str, tuple[str, ...]] = {
    "abc": ("abc", "_py_abc"),
    "codecs": ("codecs", "encodings"),
    "collections": ("collections", "_collections_abc"),
    "datetime": ("datetime", "_pydatetime"),
    "decimal": ("decimal", "_pydecimal"),
    "html": ("html", "_markupbase"),
    "io": ("io", "_pyio"),
    "os.path": ("genericpath", "ntpath", "posixpath"),
    "threading": ("threading", "_threading_local"),
    "time": ("_strptime",),
    "warnings": ("warnings", "_py_warnings"),
    "weakref": ("weakref", "_weakrefset"),
}

#: Modules that are never trained on: they play clients who join after training.
UNSEEN: tuple[str, ...] = (
    "calendar", "concurrent", "doctest", "fractions", "ftplib", "html", "json", "optparse", "random",
    "ssl", "symtable", "tempfile", "textwrap", "traceback", "turtledemo", "weakref", "xmlrpc",
    "zipfile",
)  # fmt: skip
