import io

from PIL import Image as PillowImage

from benchmarks.data.data_rate import caption_sample, conversation_sample, encode_jpeg, train_tokenizer
from model.fusion.resolution import Resolution
from pipeline.samples.encode import SampleEncoder
from pipeline.samples.fit import ImageSpec


def test_samples_are_encoded_by_the_real_encoder() -> None:
    tokenizer = train_tokenizer()
    resolution = Resolution("pad", 28, 4, 2)
    spec = ImageSpec(size=28, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    caption = SampleEncoder(tokenizer, "plain", spec, resolution, 2048).encode(caption_sample(3, encode_jpeg(3)))
    (image,) = caption.images
    assert image.pixels.shape == (1, 28, 28, 3)
    assert image.pixels.std() > 10
    talk = SampleEncoder(tokenizer, "v1", spec, resolution, 2048).encode(conversation_sample(5))
    assert talk.images == ()
    assert 300 < len(talk.input_ids) <= 2048


def test_encode_jpeg_is_about_as_large_as_a_photograph() -> None:
    data = encode_jpeg(1)
    assert PillowImage.open(io.BytesIO(data)).size == (640, 480)
    assert 30_000 < len(data) < 110_000
