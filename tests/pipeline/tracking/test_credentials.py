import pytest

from pipeline.tracking import dashboard_command
from pipeline.tracking.credentials import without_credentials


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://me:pw@host:5000/x", "http://host:5000/x"),
        ("s3://KEY:SECRET@bucket/runs/a?region=x", "s3://bucket/runs/a?region=x"),
        ("postgresql+psycopg2://u:p%40w@h/d", "postgresql+psycopg2://h/d"),
        ("http://u:p@ss@host", "http://host"),
        ('{"a": "http://u:p@h", "b": "me@example.org"}', '{"a": "http://h", "b": "me@example.org"}'),
        ("http://host/me@example.org", "http://host/me@example.org"),
        ("[\"s3://a\", 'b@c']", "[\"s3://a\", 'b@c']"),
        ("sqlite:////a@b/mlflow.db", "sqlite:////a@b/mlflow.db"),
    ],
)
def test_user_and_password_of_an_address_are_taken_out_and_nothing_else(text: str, expected: str) -> None:
    assert without_credentials(text) == expected


def test_dashboard_is_named_without_credentials() -> None:
    assert dashboard_command("https://me:pw@mlflow.example") == "https://mlflow.example"
    assert dashboard_command("postgresql://me:pw@h/d") == "mlflow ui --backend-store-uri postgresql://h/d"
