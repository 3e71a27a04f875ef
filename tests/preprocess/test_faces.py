"""Face detectors, with OpenCV's own code on a tiny model made here. Knows no network but the one on this computer."""

import hashlib
import itertools
import sys
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
    """A model with YuNet's inputs and outputs that takes a cell of 32 px for the middle of a face if its pixels are red.

    Pink will do: red beside white will not, unless the image is scaled down, and it becomes pink.
    """
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    constants = {"not_red_weight": np.array([1, 1, -2]).reshape(1, 3, 1, 1) / 255, "not_red_bias": np.array([1])}  # BGR
    nodes, outputs = [convolution("not_red", "input"), helper.make_node("Relu", ["not_red"], ["other"])], []
    for stride in (8, 16, 32):
        cell = {"kernel_shape": [stride, stride], "strides": [stride, stride]}
        nodes.append(helper.make_node("AveragePool", ["other"], [f"pooled_{stride}"], **cell))
    size = np.log(FACE / 32)
    biases = {"cls": [1], "obj": [1], "bbox": [0.5, 0.5, size, size], "kps": [0] * 10}
    for kind, stride in itertools.product(biases, (8, 16, 32)):
        name, count = f"{kind}_{stride}", len(biases[kind])
        scores = count == 1
        constants[f"{name}_weight"] = np.full((count, 1, 1, 1), -1 if scores else 0)
        constants[f"{name}_bias"] = np.array(biases[kind] if stride == 32 or not scores else [-9])
        nodes.append(convolution(name, f"pooled_{stride}", f"{name}_map"))
        nodes.append(helper.make_node("Transpose", [f"{name}_map"], [f"{name}_last"], perm=[0, 2, 3, 1]))
        nodes.append(helper.make_node("Reshape", [f"{name}_last", f"by_{count}"], [name]))
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, (640 // stride) ** 2, count]))
    tensors = [numpy_helper.from_array(each.astype(np.float32), name) for name, each in constants.items()]
    tensors += [numpy_helper.from_array(np.array([1, -1, count], np.int64), f"by_{count}") for count in (1, 4, 10)]
    given = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 640, 640])
    graph = helper.make_graph(nodes, "tiny", [given], outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=7)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def convolution(name, given, made=None):
    from onnx import helper

    return helper.make_node("Conv", [given, f"{name}_weight", f"{name}_bias"], [made or name], kernel_shape=[1, 1])


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mödels")  # OpenCV on Windows cannot open such a path by itself
    (folder / faces.MODEL).write_bytes(tiny_yunet())
    return folder


def with_red(size, *cells):
    image = Image.new("RGB", size, "white")
    for column, row in cells:
        ImageDraw.Draw(image).rectangle((column * 32, row * 32, column * 32 + 31, row * 32 + 31), fill="red")
    return image


@pytest.mark.parametrize("size", [(640, 640), (512, 683), (683, 512), (333, 517), (1000, 750)])
def test_yunet_finds_faces_in_images_of_any_size_and_takes_red_for_red(models, size):
    find, said = faces.load([models])
    assert said == f"Faces are found by YuNet ({faces.MODEL})."
    found = sorted(find(with_red(size, (3, 2), (8, 9))))
    expected = [(3 * 32 + 16 - FACE / 2, 2 * 32 + 16 - FACE / 2, FACE, FACE)]
    expected.append((8 * 32 + 16 - FACE / 2, 9 * 32 + 16 - FACE / 2, FACE, FACE))
    assert np.allclose(found, expected, atol=1e-2)


def test_a_face_that_is_seen_in_a_smaller_image_only_is_found_at_its_place(models):
    find, _ = faces.load([models])
    chequered = np.full((768, 1024, 3), 255, np.uint8)
    rows, columns = np.indices((64, 64))
    chequered[128:192, 192:256][(rows + columns) % 2 == 0] = (255, 0, 0)  # pink once it is halved
    (found,) = find(Image.fromarray(chequered))
    assert found == pytest.approx((224 - FACE, 160 - FACE, 2 * FACE, 2 * FACE), abs=0.05)


def test_where_there_is_no_face_none_is_found(models):
    find, _ = faces.load([models])
    for image in (Image.new("RGB", (600, 400), "white"), Image.new("RGB", (64, 64), "blue"), with_red((8, 8))):
        assert find(image) == []


def test_the_first_folder_that_has_the_model_is_taken(models, tmp_path):
    assert next(faces.model_files([tmp_path, models]), None) == models / faces.MODEL
    assert next(faces.model_files([tmp_path]), None) is None
    assert next(faces.model_files([]), None) is None


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
    image = Image.new("RGB", size, "#555")
    draw = ImageDraw.Draw(image)
    draw.ellipse((x - radius, y - radius * 1.3, x + radius, y + radius * 1.3), fill="#ddd")
    for side in (-1, 1):
        eye = x + side * radius * 0.42
        draw.ellipse((eye - radius / 5, y - radius * 0.42, eye + radius / 5, y - radius * 0.2), fill="#333")
        draw.rectangle((eye - radius / 4, y - radius * 0.62, eye + radius / 4, y - radius * 0.52), fill="#444")
    draw.polygon((x, y - radius * 0.2, x - radius / 7, y + radius * 0.25, x + radius / 7, y + radius * 0.25), fill="#bbb")
    draw.rectangle((x - radius * 0.4, y + radius * 0.55, x + radius * 0.4, y + radius * 0.7), fill="#555")
    return image


def test_without_opencv_it_says_what_to_install(monkeypatch, models):
    monkeypatch.setitem(sys.modules, "cv2", None)
    find, said = faces.load([models])
    assert find is None
    assert "-m pip install opencv-python-headless" in said
    assert said.startswith("Faces are not detected.")


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
    assert next(faces.model_files([path.parent]), None) == path
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
    assert next(faces.model_files([tmp_path]), None) is None
