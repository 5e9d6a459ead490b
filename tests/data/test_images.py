"""One image: formats, depths and shapes, as Pillow gives them."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image, features

from ltmsearch.data.images import LONGEST, decode, formats, read_image, suffixes
from ltmsearch.errors import InputError

COLOUR = (200, 100, 50)


def decoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    file.seek(0)
    return decode(file)


class TestFormats:
    def test_endings_are_those_of_formats_that_pillow_decodes(self):
        usual = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".jp2", ".ppm", ".tga", ".mpo"}
        assert usual <= suffixes()
        assert (".avif" in suffixes()) == features.check("avif")
        # Identified only, run by Ghostscript, or only written.
        assert not {".h5", ".hdf", ".grib", ".mpg", ".wmf", ".eps", ".ps", ".pdf", ".txt", ""} & suffixes()

    @pytest.mark.parametrize("name", sorted({"PNG", "WEBP", "TIFF", "BMP", "GIF", "TGA", "PPM", "PCX", "SGI", "QOI"}))
    def test_a_lossless_format_gives_its_pixels(self, name):
        image, scaled = decoded(Image.new("RGB", (5, 4), COLOUR), name, **{"lossless": True} if name == "WEBP" else {})
        assert (image.mode, image.size, image.getpixel((2, 2)), scaled) == ("RGB", (5, 4), COLOUR, False)

    @pytest.mark.parametrize("name", ["GIF", "WEBP", "PNG", "TIFF"])
    def test_of_an_animation_the_first_picture(self, name):
        first, second = Image.new("RGB", (5, 4), COLOUR), Image.new("RGB", (5, 4), (0, 0, 0))
        options = {"lossless": True} if name == "WEBP" else {}
        image, _ = decoded(first, name, save_all=True, append_images=[second], **options)
        assert image.getpixel((2, 2)) == COLOUR

    def test_a_picture_of_several_is_read_as_jpeg(self):
        first = Image.new("RGB", (16, 16), COLOUR)
        image, _ = decoded(first, "MPO", save_all=True, append_images=[Image.new("RGB", (16, 16))])
        assert np.abs(np.subtract(image.getpixel((8, 8)), COLOUR)).max() <= 2

    def test_postscript_under_another_name_is_not_run(self, tmp_path):
        Image.new("RGB", (5, 4)).save(tmp_path / "image.eps")
        (tmp_path / "image.eps").rename(tmp_path / "image.png")
        with pytest.raises(InputError, match="Pillow does not recognise its format; use an undamaged image file"):
            read_image(tmp_path / "image.png")

    def test_an_empty_file(self, tmp_path):
        (tmp_path / "a.png").touch()
        with pytest.raises(InputError, match=r"a.png cannot be read: it is empty"):
            read_image(tmp_path / "a.png")

    @pytest.mark.parametrize("name", sorted({"AVIF", "BLP", "TIFF", "WEBP", "JPEG2000", "DDS", "ICO"} & set(formats())))
    def test_whatever_a_damaged_file_makes_a_decoder_raise_is_one_error(self, tmp_path, name):
        pixels = np.random.default_rng(0).integers(0, 256, (24, 31, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        file = io.BytesIO()
        image.convert("P").save(file, name) if name == "BLP" else image.save(file, name)
        whole, refused = file.getvalue(), 0
        for cut in range(4, len(whole), max(1, len(whole) // 20)):
            (tmp_path / "cut").write_bytes(whole[:cut])
            try:
                read_image(tmp_path / "cut")
            except InputError:
                refused += 1
        assert refused > 0


class TestModes:
    """As timm converts to RGB, except for deep grey, which that clips to white."""

    @pytest.mark.parametrize(("name", "order"), [("PNG", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2"), ("PPM", "<u2")])
    def test_grey_of_16_bits_has_the_scale_of_16_bits(self, name, order):
        values = np.array([[0, 128, 129, 257, 32896, 65535]], np.uint16)
        image, scaled = decoded(Image.fromarray(values.astype(order)), name)
        assert scaled
        assert np.asarray(image).tolist() == [[0, 0, 1, 1, 128, 255]]

    def test_a_dark_image_of_16_bits_stays_dark(self):
        image, _ = decoded(Image.fromarray(np.full((2, 2), 200, np.uint16)), "PNG")
        assert np.asarray(image).max() == 1

    @pytest.mark.parametrize(
        ("values", "wanted"),
        [
            (np.array([[0, 1, 200, 255]], np.int32), [0, 1, 200, 255]),
            (np.array([[0, 257, 514, 65535]], np.int32), [0, 1, 2, 255]),
            (np.array([[-100, 0, 100]], np.int32), [0, 128, 255]),
            (np.array([[0, 10**6, 10**9]], np.int32), [0, 0, 255]),
            (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
            (np.array([[0.0, 1.5, 254.0]], np.float32), [0, 2, 254]),
            (np.array([[0.0, 25700.0]], np.float32), [0, 100]),
            (np.array([[-1.0, np.nan, np.inf, 3.0, -np.inf]], np.float32), [0, 0, 255, 255, 0]),
            (np.array([[-3e38, 0.0, 3e38]], np.float32), [0, 128, 255]),
            (np.array([[-7.0, -7.0]], np.float32), [0, 0]),
            (np.array([[np.nan]], np.float32), [0]),
        ],
    )
    def test_grey_of_32_bits_has_the_smallest_scale_that_fits(self, values, wanted):
        image, scaled = decoded(Image.fromarray(values), "TIFF")
        assert scaled
        assert np.asarray(image)[0].tolist() == wanted

    def test_palette_transparency_cmyk_and_orientation_are_as_in_timm(self, tmp_path):
        rgba = Image.new("RGBA", (6, 4), (*COLOUR, 0))
        exif = Image.Exif()
        exif[0x0112] = 6  # lying on its side
        with_alpha = rgba.quantize(4)
        assert with_alpha.mode == "P"
        for name, image, options in (
            ("RGBA.png", rgba, {}),
            ("LA.png", rgba.convert("LA"), {}),
            ("P.png", with_alpha, {"transparency": b"\x00\x80"}),
            ("CMYK.tif", Image.new("CMYK", (6, 4), (10, 20, 30, 40)), {}),
            ("exif.jpg", Image.new("RGB", (6, 4), COLOUR), {"exif": exif}),
            ("1.png", Image.new("1", (6, 4), 1), {}),
        ):
            image.save(tmp_path / name, **options)
            with warnings.catch_warnings(action="ignore"):
                wanted = Image.open(tmp_path / name).convert("RGB")  # timm's input_img_mode
            got, scaled = read_image(tmp_path / name)  # warnings are errors here
            assert not scaled
            assert got.size == (6, 4)
            assert got.convert("RGB").tobytes() == wanted.tobytes()

    def test_warnings_of_pillow_stay_quiet(self, tmp_path, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)  # a bomb is twice that
        Image.new("RGB", (6, 6)).save(tmp_path / "large.png")
        assert read_image(tmp_path / "large.png")[0].size == (6, 6)
        Image.new("RGB", (7, 7)).save(tmp_path / "bomb.png")
        with pytest.raises(InputError, match="bomb.png cannot be read: Image size"):
            read_image(tmp_path / "bomb.png")


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1)])
def test_a_line_is_cut_around_its_centre(size):
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels.reshape(-1, 3)[10_000 - LONGEST // 2 :] = COLOUR
    image, _ = decoded(Image.fromarray(pixels), "PNG")
    assert sorted(image.size) == [1, LONGEST]
    assert np.asarray(image).reshape(-1, 3)[[0, -1]].tolist() == [list(COLOUR)] * 2
    whole, _ = decoded(Image.new("RGB", (LONGEST * 3, 3)), "PNG")
    assert whole.size == (LONGEST * 3, 3)
