import io

from PIL import Image as PillowImage

from pipeline.benchmark.data_rate import caption_sample, conversation_sample, encode_jpeg, train_tokenizer
from pipeline.samples.encode import SampleEncoder
from pipeline.samples.fit import ImageSpec


def test_samples_are_encoded_by_the_real_encoder() -> None:
    tokenizer = train_tokenizer()
    spec = ImageSpec(size=28, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    caption = SampleEncoder(tokenizer, "plain", spec, 4, 2048).encode(caption_sample(3, encode_jpeg(3)))
    assert caption.pixels.shape == (1, 3, 28, 28)
    assert caption.pixels.std() > 10
    talk = SampleEncoder(tokenizer, "v1", spec, 4, 2048).encode(conversation_sample(5))
    assert len(talk.pixels) == 0
    assert 300 < len(talk.input_ids) <= 2048


def test_encode_jpeg_is_about_as_large_as_a_photograph() -> None:
    data = encode_jpeg(1)
    assert PillowImage.open(io.BytesIO(data)).size == (640, 480)
    assert 30_000 < len(data) < 110_000
