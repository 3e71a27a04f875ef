"""Face detectors, with OpenCV's own code on a tiny model made here. Knows no network but the one on this computer."""

import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ti_trainer.errors import ConfigError
from ti_trainer.preprocess import faces

cv2 = pytest.importorskip("cv2")
FACE = 64  # px, of what the tiny model calls a face


def tiny_yunet():
    """A model with YuNet's inputs and outputs that takes every cell of 32 px that is all red for the middle of a face."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    nodes, outputs, constants = [], [], {"rows": np.array([1, -1, 1]), "boxes": np.array([1, -1, 4])}
    constants["points"] = np.array([1, -1, 10])

    def output(kind, stride, count, weight, bias):
        name = f"{kind}_{stride}"
        constants[f"{name}_weight"] = np.tile(np.array(weight, np.float32).reshape(1, 3, 1, 1), (count, 1, 1, 1))
        constants[f"{name}_bias"] = np.array(bias, np.float32)
        shape = {1: "rows", 4: "boxes", 10: "points"}[count]
        nodes.append(helper.make_node("Conv", [f"pooled_{stride}", f"{name}_weight", f"{name}_bias"], [f"{name}_map"]))
        nodes.append(helper.make_node("Transpose", [f"{name}_map"], [f"{name}_last"], perm=[0, 2, 3, 1]))
        nodes.append(helper.make_node("Reshape", [f"{name}_last", shape], [name]))
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, (640 // stride) ** 2, count]))

    for stride in (8, 16, 32):
        cell = {"kernel_shape": [stride, stride], "strides": [stride, stride]}
        nodes.append(helper.make_node("AveragePool", ["input"], [f"pooled_{stride}"], **cell))
    for kind in ("cls", "obj", "bbox", "kps"):
        for stride in (8, 16, 32):
            looks = stride == 32 and kind in ("cls", "obj")
            red = np.array([-1, -1, 1]) / 255 if looks else np.zeros(3)  # channels are blue, green, red
            size = float(np.log(FACE / 32))
            bias = {"bbox": [0.5, 0.5, size, size], "kps": [0] * 10}.get(kind, [0])
            output(kind, stride, len(bias), red, bias)
    tensors = [numpy_helper.from_array(each, name) for name, each in constants.items()]
    given = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 640, 640])
    graph = helper.make_graph(nodes, "tiny", [given], outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=7)
    onnx.checker.check_model(model)
    return model.SerializeToString()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mödels")  # OpenCV on Windows cannot open such a path by itself
    (folder / faces.MODEL).write_bytes(tiny_yunet())
    return folder


def with_red(size, *cells):
    picture = Image.new("RGB", size, "white")
    for column, row in cells:
        ImageDraw.Draw(picture).rectangle((column * 32, row * 32, column * 32 + 31, row * 32 + 31), fill="red")
    return picture


@pytest.mark.parametrize("size", [(640, 640), (512, 683), (683, 512), (333, 517), (1000, 750)])
def test_yunet_finds_faces_in_pictures_of_any_size_and_takes_red_for_red(models, size):
    find, said = faces.load([models])
    assert said == f"Faces are found by YuNet ({faces.MODEL})."
    found = sorted(find(with_red(size, (3, 2), (8, 9))))
    expected = [(3 * 32 + 16 - FACE / 2, 2 * 32 + 16 - FACE / 2, FACE, FACE)]
    expected.append((8 * 32 + 16 - FACE / 2, 9 * 32 + 16 - FACE / 2, FACE, FACE))
    assert np.allclose(found, expected, atol=1e-2)


def test_a_face_too_large_to_be_seen_is_found_in_a_smaller_picture_at_its_place(models):
    find, _ = faces.load([models])
    wide = with_red((512, 384), (3, 2))
    (small,) = find(wide)
    # A pattern as large as four cells in which none is all red, but which is red on the average of 2 x 2 px:
    # red is 255 there, blue and green are not, until the model sees the halved picture.
    (large,) = find(wide.resize((1024, 768), Image.Resampling.NEAREST).crop((0, 0, 1024, 768)))
    assert large[2] in (FACE, 2 * FACE)
    assert small[2] == pytest.approx(FACE, abs=0.01)


def test_where_there_is_no_face_none_is_found(models):
    find, _ = faces.load([models])
    for picture in (Image.new("RGB", (600, 400), "white"), Image.new("RGB", (64, 64), "blue"), with_red((8, 8))):
        assert find(picture) == []


def test_the_first_folder_that_has_the_model_is_taken(models, tmp_path):
    assert faces.model_file([tmp_path, models]) == models / faces.MODEL
    assert faces.model_file([tmp_path]) is None
    assert faces.model_file([]) is None


def test_a_damaged_model_is_passed_over_and_named(models, tmp_path):
    (tmp_path / faces.MODEL).write_bytes((models / faces.MODEL).read_bytes()[:500])
    _, said = faces.load([tmp_path])
    assert f"{tmp_path / faces.MODEL} is damaged: delete it." in said
    find, said = faces.load([tmp_path, models])
    assert find(with_red((640, 480), (3, 2)))
    assert "YuNet" in said


def test_without_a_model_it_says_how_to_get_it_and_does_with_what_opencv_has(tmp_path):
    find, said = faces.load([tmp_path])
    assert f"put {faces.MODEL} into {tmp_path}" in said
    if hasattr(cv2, "CascadeClassifier"):
        assert "Haar" in said
        assert find(drawn_face((400, 300), 150, 140, 60))
        assert find(Image.new("RGB", (400, 300), "grey")) == []
    else:
        assert find is None


def drawn_face(size, x, y, radius):
    """Eyes, nose and mouth in light grey: enough for a Haar cascade."""
    picture = Image.new("RGB", size, "#555")
    draw = ImageDraw.Draw(picture)
    draw.ellipse((x - radius, y - radius * 1.3, x + radius, y + radius * 1.3), fill="#ddd")
    for side in (-1, 1):
        eye = x + side * radius * 0.42
        draw.ellipse((eye - radius / 5, y - radius * 0.42, eye + radius / 5, y - radius * 0.2), fill="#333")
        draw.rectangle((eye - radius / 4, y - radius * 0.62, eye + radius / 4, y - radius * 0.52), fill="#444")
    draw.polygon((x, y - radius * 0.2, x - radius / 7, y + radius * 0.25, x + radius / 7, y + radius * 0.25), fill="#bbb")
    draw.rectangle((x - radius * 0.4, y + radius * 0.55, x + radius * 0.4, y + radius * 0.7), fill="#555")
    return picture


def test_without_opencv_it_says_what_to_install(monkeypatch, models):
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    find, said = faces.load([models])
    assert find is None
    assert "-m pip install opencv-python-headless" in said
    assert said.startswith("Faces are not looked for.")


@pytest.fixture
def served(tmp_path):
    """A folder, and its address on this computer."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_what_is_downloaded_is_kept_once_it_is_known_to_be_the_model(served, tmp_path, monkeypatch, models):
    folder, url = served
    content = (models / faces.MODEL).read_bytes()
    (folder / "model").write_bytes(content)
    monkeypatch.setattr(faces, "SHA256", hashlib.sha256(content).hexdigest())
    path = faces.download(tmp_path / "new" / "folder", f"{url}/model")
    assert path.read_bytes() == content
    assert faces.model_file([path.parent]) == path
    assert "YuNet" in faces.load([path.parent])[1]


def test_something_else_is_refused_and_not_kept(served, tmp_path):
    folder, url = served
    (folder / "model").write_text("<html>Not found</html>")
    with pytest.raises(ConfigError, match=r"(?s)found 22 bytes.*expected 8f2383e4.*Nothing was kept"):
        faces.download(tmp_path / "kept", f"{url}/model")
    assert not (tmp_path / "kept").exists()


def test_no_answer_is_explained_and_how_to_do_without(served, tmp_path):
    _, url = served
    with pytest.raises(ConfigError, match=rf"(?s)404.*with a browser.*{faces.MODEL}"):
        faces.download(tmp_path, f"{url}/none")
    with pytest.raises(ConfigError, match="could not be downloaded"):
        faces.download(tmp_path, "http://127.0.0.1:9/")
    assert faces.model_file([tmp_path]) is None
