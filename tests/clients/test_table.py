"""docs/compatibility.md tells the results that are kept, and nothing else."""

from tests.clients.results import Book, Came
from tests.clients.table import PAGE, page


def test_the_page_is_that_of_the_results() -> None:
    assert PAGE.read_text() == page(Book.load()), "run `python tests/clients/table.py`"


def test_what_did_not_work_is_told() -> None:
    book = Book()
    book.write("chat", "openai-3", {"openai": "3.0"}, "plain", Came.BROKEN)
    book.write("chat", "openai-3", {"openai": "3.0"}, "cut", Came.TOUCHED)
    told = page(book)

    assert "| openai (Python) 3.x | openai 3.0 | 0 | 1 | 1 | 0 |" in told
    assert "| plain: a question and its answer | not run | not run | **no** |" in told


def test_results_of_another_version_are_forgotten() -> None:
    book = Book()
    book.write("chat", "openai-3", {"openai": "3.0"}, "plain", Came.GOOD)
    book.write("chat", "openai-3", {"openai": "3.1"}, "cut", Came.GOOD)

    assert book.clients["chat"]["openai-3"]["scenarios"] == {"cut": "good"}
