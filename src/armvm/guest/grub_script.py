"""GRUB's configuration language, read: text → commands (GRUB manual §6; grub-core/script/parser.y and yylex.l).

GRUB reads a file statement by statement: one that is wrong is reported and dropped, and the next line goes on. So does
this parser: what is wrong becomes a ``SyntaxProblem`` and never stops the rest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from armvm.printable import printable

MOST_NESTED = 32
"""How deep blocks may stand in each other."""
_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*|[0-9]+|[?@*#])\}|([A-Za-z_][A-Za-z0-9_]*|[0-9]+|[?@*#]))")
_BLANKS = " \t\r"
_SINGLE = "{}|&;<>\n"
_DOUBLE = ("||", "&&", ";;")
_PLAIN = re.compile(r"[^{}|&$;<> \t\r\n'\"\\]+")
_QUOTED_TEXT = re.compile(r'[^"\\$]+')
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_KEYWORDS = frozenset(
    [
        "case",
        "do",
        "done",
        "elif",
        "else",
        "esac",
        "fi",
        "for",
        "function",
        "if",
        "in",
        "select",
        "then",
        "until",
        "while",
    ]
)


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a word: text as it stands, or with ``variable`` the name of one. ``quoted`` is never split."""

    text: str
    variable: bool = False
    quoted: bool = False


@dataclass(frozen=True, slots=True)
class Word:
    """One word of a command, of its pieces."""

    parts: tuple[Part, ...]

    @property
    def keyword(self) -> str | None:
        """The word itself when it stands there bare, so that it can be a keyword."""
        if len(self.parts) == 1 and not self.parts[0].variable and not self.parts[0].quoted:
            return self.parts[0].text
        return None


@dataclass(frozen=True, slots=True)
class Command:
    """A command with its arguments and, for menu entries, its block."""

    line: int
    words: tuple[Word, ...]
    block: Block | None = None


@dataclass(frozen=True, slots=True)
class If:
    """``if``: the first branch whose condition holds, else ``otherwise``."""

    line: int
    branches: tuple[tuple[Block, Block], ...]
    otherwise: Block


@dataclass(frozen=True, slots=True)
class For:
    """``for NAME in WORDS``."""

    line: int
    name: Word
    words: tuple[Word, ...]
    body: Block


@dataclass(frozen=True, slots=True)
class While:
    """``while``, and with ``until`` its opposite."""

    line: int
    condition: Block
    body: Block
    until: bool = False


@dataclass(frozen=True, slots=True)
class Function:
    """``function NAME { … }``."""

    line: int
    name: Word
    body: Block


Statement = Command | If | For | While | Function
Block = tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class SyntaxProblem:
    """A statement that GRUB does not understand, and drops. ``line`` counts from 1."""

    line: int
    message: str


@dataclass(frozen=True, slots=True)
class Script:
    """A configuration file, read."""

    statements: Block
    problems: tuple[SyntaxProblem, ...]


@dataclass(frozen=True, slots=True)
class _Token:
    line: int
    sign: str
    """A separator or brace as it stands, ``word``, or ``end``."""
    word: Word | None = None


class _Wrong(Exception):  # noqa: N818 - a turn of the parser, no error of ours
    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


def parse_script(text: str) -> Script:
    """Read a configuration. Never raises: what is wrong is in ``problems``, at most 100 of them."""
    parser = _Parser(_Lexer(text))
    statements: list[Statement] = []
    problems: list[SyntaxProblem] = []
    while True:
        try:
            statement = parser.next_statement()
            if statement is None:
                break
            statements.append(statement)
        except _Wrong as wrong:
            if len(problems) < 100:
                problems.append(SyntaxProblem(wrong.line, str(wrong)))
            parser.skip_line()
    return Script(tuple(statements), tuple(problems))


class _Lexer:
    """Text → tokens, one at a time."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.line = 1

    def skip_line(self) -> None:
        """Go on behind the next line end."""
        end = self.text.find("\n", self.position)
        self.position = len(self.text) if end < 0 else end + 1
        self.line += 1

    def next(self) -> _Token:
        """The next token. Raises _Wrong at a quotation mark without its second."""
        self._skip_blanks()
        text, at = self.text, self.position
        if at >= len(text):
            return _Token(self.line, "end")
        sign = next((double for double in _DOUBLE if text.startswith(double, at)), text[at])
        if sign[0] in _SINGLE:
            self.position += len(sign)
            token = _Token(self.line, sign)
            self.line += sign == "\n"
            return token
        return self._word()

    def _skip_blanks(self) -> None:
        text = self.text
        while self.position < len(text):
            if text[self.position] in _BLANKS:
                self.position += 1
            elif text.startswith("\\\n", self.position):
                self.position += 2
                self.line += 1
            elif text[self.position] == "#":
                end = text.find("\n", self.position)
                self.position = len(text) if end < 0 else end
            else:
                return

    def _word(self) -> _Token:
        line = self.line
        parts: list[Part] = []
        text = self.text
        while self.position < len(text):
            character = text[self.position]
            if character in _BLANKS or character in _SINGLE:
                break
            if character == "'":
                end = text.find("'", self.position + 1)
                if end < 0:
                    raise self._unclosed(line)
                self._take(parts, Part(text[self.position + 1 : end], quoted=True), end + 1)
            elif character == '"':
                self._double_quoted(parts, line)
            elif character == "\\":
                self._escape(parts)
            elif character == "$":
                self._variable(parts, quoted=False)
            else:
                plain = _PLAIN.match(text, self.position)
                end = plain.end() if plain else self.position + 1
                self._take(parts, Part(text[self.position : end]), end)
        return _Token(line, "word", Word(tuple(parts)))

    def _double_quoted(self, parts: list[Part], line: int) -> None:
        parts.append(Part("", quoted=True))
        self.position += 1
        text = self.text
        while self.position < len(text):
            character = text[self.position]
            if character == '"':
                self.position += 1
                return
            if character == "\\":
                follows = text[self.position + 1 : self.position + 2]
                kept = follows if follows in ("$", '"', "\\") else "" if follows == "\n" else "\\" + follows
                self._take(parts, Part(kept, quoted=True), self.position + 2)
            elif character == "$":
                self._variable(parts, quoted=True)
            else:
                plain = _QUOTED_TEXT.match(text, self.position)
                end = plain.end() if plain else self.position + 1
                self._take(parts, Part(text[self.position : end], quoted=True), end)
        raise self._unclosed(line)

    def _escape(self, parts: list[Part]) -> None:
        follows = self.text[self.position + 1 : self.position + 2]
        self._take(parts, Part("" if follows == "\n" else follows, quoted=True), self.position + 2)

    def _variable(self, parts: list[Part], *, quoted: bool) -> None:
        found = _VARIABLE.match(self.text, self.position)
        if found is None:
            raise _Wrong(self.line, "a '$' that no name follows")
        self._take(parts, Part(found[1] or found[2], variable=True, quoted=quoted), found.end())

    def _take(self, parts: list[Part], part: Part, end: int) -> None:
        self.line += self.text.count("\n", self.position, end)
        self.position = min(end, len(self.text))
        parts.append(part)

    def _unclosed(self, line: int) -> _Wrong:
        self.position = len(self.text)
        return _Wrong(line, "a quotation mark is never closed")


class _Parser:
    """Tokens → statements, with one token of look-ahead."""

    def __init__(self, lexer: _Lexer) -> None:
        self.lexer = lexer
        self.ahead: _Token | None = None
        self.nested = 0

    def skip_line(self) -> None:
        """Drop what is left of the line where something was wrong."""
        at_line_end = self.ahead is not None and self.ahead.sign == "\n"
        self.ahead = None
        self.nested = 0
        if not at_line_end:
            self.lexer.skip_line()

    def next_statement(self) -> Statement | None:
        """The next statement of the file; None at its end."""
        while self._peek().sign == "\n":
            self._next()
        if self._peek().sign == "end":
            return None
        statement = self._function() if self._is_keyword("function") else self._command()
        if self._peek().sign not in ("\n", ";", "end"):
            raise self._unexpected("the end of the command")
        if self._peek().sign == ";":
            self._next()
        return statement

    def _peek(self) -> _Token:
        if self.ahead is None:
            self.ahead = self.lexer.next()
        return self.ahead

    def _next(self) -> _Token:
        token = self._peek()
        self.ahead = None
        return token

    def _is_keyword(self, *names: str) -> bool:
        word = self._peek().word
        return word is not None and word.keyword in names

    def _unexpected(self, expected: str) -> _Wrong:
        token = self._peek()
        found = {"\n": "the line's end", "end": "the file's end"}.get(token.sign, token.sign)
        if token.word is not None:
            found = printable(token.word.keyword or "a word")
        return _Wrong(token.line, f"found {found}, expected {expected}")

    def _expect_keyword(self, name: str) -> None:
        if not self._is_keyword(name):
            raise self._unexpected(f"'{name}'")
        self._next()

    def _delimiters(self, *, needed: bool) -> None:
        """delimiters1 (or with ``needed`` False, delimiters0) of parser.y: one ``;`` or line end, then line ends."""
        if self._peek().sign not in (";", "\n"):
            if needed:
                raise self._unexpected("';' or a new line")
            return
        self._next()
        while self._peek().sign == "\n":
            self._next()

    def _commands(self, *ends: str, closing: bool = False, delimited: bool = True) -> Block:
        """commands1 up to a keyword of ``ends``, or with ``closing`` up to ``}``; the end is not taken."""
        self.nested += 1
        if self.nested > MOST_NESTED:
            raise _Wrong(self._peek().line, f"blocks are nested deeper than {MOST_NESTED}")
        while self._peek().sign == "\n":
            self._next()
        commands: list[Statement] = []
        while True:
            commands.append(self._command())
            if closing and not delimited and self._peek().sign == "}":
                break
            self._delimiters(needed=True)
            if (closing and self._peek().sign == "}") or self._is_keyword(*ends):
                break
        self.nested -= 1
        return tuple(commands)

    def _command(self) -> Statement:
        token = self._peek()
        if token.word is None:
            raise self._unexpected("a command")
        keyword = token.word.keyword
        if keyword == "if":
            return self._if()
        if keyword == "for":
            return self._for()
        if keyword in ("while", "until"):
            return self._while(until=keyword == "until")
        if keyword in _KEYWORDS:
            raise self._unexpected("a command")
        words: list[Word] = []
        while (word := self._peek().word) is not None:
            words.append(word)
            self._next()
        block: Block | None = None
        if self._peek().sign == "{":
            self._next()
            block = self._commands(closing=True, delimited=False)
            self._next()
        return Command(token.line, tuple(words), block)

    def _if(self) -> If:
        line = self._next().line
        branches: list[tuple[Block, Block]] = []
        otherwise: Block = ()
        while True:
            condition = self._commands("then")
            self._expect_keyword("then")
            branches.append((condition, self._commands("elif", "else", "fi")))
            if self._is_keyword("elif"):
                self._next()
                continue
            if self._is_keyword("else"):
                self._next()
                otherwise = self._commands("fi")
            self._expect_keyword("fi")
            return If(line, tuple(branches), otherwise)

    def _for(self) -> For:
        line = self._next().line
        name = self._name()
        self._expect_keyword("in")
        words: list[Word] = []
        while (word := self._peek().word) is not None:
            words.append(word)
            self._next()
        self._delimiters(needed=True)
        self._expect_keyword("do")
        body = self._commands("done")
        self._expect_keyword("done")
        return For(line, name, tuple(words), body)

    def _while(self, *, until: bool) -> While:
        line = self._next().line
        condition = self._commands("do")
        self._expect_keyword("do")
        body = self._commands("done")
        self._expect_keyword("done")
        return While(line, condition, body, until)

    def _function(self) -> Function:
        line = self._next().line
        name = self._name()
        self._delimiters(needed=False)
        if self._peek().sign != "{":
            raise self._unexpected("'{'")
        self._next()
        body = self._commands(closing=True)
        self._next()
        return Function(line, name, body)

    def _name(self) -> Word:
        word = self._peek().word
        if word is None or word.keyword is None or word.keyword in _KEYWORDS or not _NAME.fullmatch(word.keyword):
            raise self._unexpected("a name")
        self._next()
        return word
