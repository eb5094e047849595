"""Bodies of `multipart/form-data`: a few short fields and one file, in any order, read as they arrive."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from tunesmith.errors import RequestError
from tunesmith.rest.errors import WireError, WireFault

#: Forms of OpenAI's clients have four fields.
MAX_FIELDS = 100
_MAX_FIELD_BYTES = 64 * 2**10
_PLAIN_ENCODINGS = ("", "binary", "8bit", "7bit")


class FileSink(Protocol):
    """Takes the form's file as it arrives."""

    def begin(self, filename: str | None, fields: Mapping[str, str]) -> None:
        """Hear what the file is called and which fields came before it."""

    def write(self, content: memoryview) -> None:
        """Take the next piece; it is only valid during the call."""


class FormReader:
    """Reads one form, piece by piece; `fields` are complete after `finish`.

    Args:
        content_type: the request's header.
        file_field: what the file's field is called.
        sink: takes the file.

    Raises:
        WireFault: the header is of no form.
    """

    def __init__(self, content_type: str, file_field: str, sink: FileSink) -> None:
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise WireFault(
                WireError(
                    415,
                    f"Unsupported content type: '{content_type[:100]}'. Send a form: multipart/form-data.",
                    "unsupported_content_type",
                )
            )
        self.fields: dict[str, str] = {}
        self._file_field = file_field
        self._sink = sink
        self._has_file = False
        self._has_ended = False
        self._header = bytearray()
        self._value = bytearray()
        self._headers: dict[bytes, bytes] = {}
        #: The field that is being read; None while it is the file.
        self._name: str | None = None
        self._text = bytearray()
        try:
            self._parser = MultipartParser(
                options[b"boundary"],
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._end_headers,
                    "on_part_data": self._data,
                    "on_part_end": self._end_part,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise _broken(error) from error

    def feed(self, content: bytes) -> None:
        """Take the next piece of the body.

        Raises:
            RequestError: it isn't a form, or one with too many or too long fields, or with two files.
        """
        try:
            self._parser.write(content)
        except FormParserError as error:
            raise _broken(error) from error

    def finish(self) -> None:
        """Say that the body is whole.

        Raises:
            RequestError: it was cut off, or there is no file in it.
        """
        if not self._has_ended:
            raise RequestError("The form ends too early: was it cut off?", code="invalid_multipart")
        if not self._has_file:
            raise RequestError(
                f"Missing required parameter: '{self._file_field}'.",
                code="missing_required_parameter",
                param=self._file_field,
            )

    def _begin_part(self) -> None:
        self._headers = {}

    def _end_header(self) -> None:
        self._headers[bytes(self._header).lower()] = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b"").decode("latin-1"))
        if b"name" not in options:
            raise RequestError("A part of the form has no name.", code="invalid_multipart")
        if self._headers.get(b"content-transfer-encoding", b"").decode("latin-1").lower() not in _PLAIN_ENCODINGS:
            raise RequestError("Parts of forms are read as they are. Send them binary.", code="invalid_multipart")
        name = options[b"name"].decode("utf-8", "replace")
        if name == self._file_field:
            self._begin_file(options.get(b"filename"))
            return
        if b"filename" in options:
            raise RequestError(f"Unknown file: '{name[:100]}'.", code="unknown_parameter", param=name[:100])
        if name in self.fields:
            raise RequestError(f"The field '{name[:100]}' appears twice.", code="duplicate_field", param=name[:100])
        if len(self.fields) >= MAX_FIELDS:
            raise RequestError(f"A form has at most {MAX_FIELDS} fields.", code="too_many_fields")
        self._name = name
        self._text.clear()

    def _begin_file(self, filename: bytes | None) -> None:
        if self._has_file:
            raise RequestError(
                "This form holds two files; send one form for each.", code="too_many_files", param=self._file_field
            )
        self._has_file = True
        self._name = None
        self._sink.begin(None if filename is None else filename.decode("utf-8", "replace"), self.fields)

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._name is None:
            self._sink.write(memoryview(data)[start:end])
            return
        if len(self._text) + end - start > _MAX_FIELD_BYTES:
            raise RequestError(
                f"The field '{self._name[:100]}' is too long.",
                code="string_above_max_length",
                param=self._name[:100],
            )
        self._text += data[start:end]

    def _end_part(self) -> None:
        if self._name is None:
            return
        try:
            self.fields[self._name] = self._text.decode("utf-8")
        except UnicodeDecodeError:
            raise RequestError(
                f"The field '{self._name[:100]}' isn't UTF-8.", code="invalid_encoding", param=self._name[:100]
            ) from None

    def _end(self) -> None:
        self._has_ended = True


def _broken(error: FormParserError) -> RequestError:
    return RequestError(f"This isn't a form as its Content-Type promises: {error}.", code="invalid_multipart")
