import socket

import pytest

from pipeline.launch.on_ray.address import check_listens, endpoint


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("10.0.0.1:6379", ("10.0.0.1", 6379)),
        ("ray://head:10001", ("head", 10001)),
        ("[::1]:6379", ("::1", 6379)),
        ("auto", None),
        ("local", None),
        ("head:port", None),
        ("", None),
    ],
)
def test_endpoint_is_host_and_port_where_an_address_names_them(address: str, expected: tuple[str, int] | None) -> None:
    assert endpoint(address) == expected


def test_check_listens_refuses_an_address_where_nothing_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        check_listens(address)
        check_listens(f"ray://{address}")
    with pytest.raises(ConnectionError, match=f"RAY_ADDRESS {address}: nothing answers there"):
        check_listens(address)
    check_listens("auto")
