"""Find out whether the name of an image file describes it, or is only the name that a camera or program gave it."""

from __future__ import annotations

import re

# Words that say nothing of an image, in lower case: of cameras and phones, of programs, of dates.
_EMPTY = """
cimg crw csc dcim dji dsc dscf dscn dsci dsf fb gopr hdr heic heif hevc hpim imag img imga imgp kimg lrm mg mms mov mp mpo
mvi mvimg nef pano pict pxl raw received sam sdc sdim sta vid vsco wa win wp ydxj
adobe beautyplus camscanner canva faceapp fotor gallery google gimp inshot kakaotalk lightroom meitu mmexport miui photoroom
photoshop picsart polarr polish remini retouch snapseed viber
artboard artbreeder batch crop cut design dataset edit edits enhanced express esrgan fooocus gen generated hqdefault inpaint
inpainted invokeai layer leonardo lportrait maxresdefault nr out outputs pro project realesrgan render samples scaled sd sdxl
seed step steps tumblr upscale upscaled upscayl ver version video
bmp com gif jpeg jpg png tif tiff webp
burst collage cover edited export exported final flipped frame frames fullsizerender ios iphone android snapchat telegram
whatsapp wechat signal facebook instagram twitter unsplash pexels pixabay midjourney comfyui txt2img img2img grid dalle
capture download downloaded downloads file files image images media output pic pics picture pictures photo photos result
sample scan scanned screen screencap screenshot screenshots shot snapshot test thumb thumbnail tmp unbenannt unknown
unnamed untitled upload copy kopie copie copia new resized cropped original attachment clipboard shutterstock istock
aufnahme bild bilder bildschirmfoto foto fotos captura pantalla imagen capture ecran écran imagem immagine obraz zdjęcie
изображение снимок экрана фото
图片 照片 截图 截屏 屏幕截图 微信图片 微信 スクリーンショット 画像 写真 스크린샷 사진 이미지
at am pm utc um de du des di do da von from of the on in and le la el
jan feb mar apr may jun jul aug sep sept oct nov dec mon tue wed thu fri sat sun
january february march april june july august september october november december
"""
EMPTY_WORDS = frozenset(_EMPTY.split())
_COUNTED = re.compile(
    r"""(?x) ^[-_]*
    (?!\d-?[dD]\b | [1-9]\s+[^\W\d_])                # but 3d, 3-d, and 2 dogs, which are words
    \(? \d+ (?:[-_] (?![1-9]\s+[^\W\d_]) \d+ | (?:\.\d+){2,})* \)?  # 00012-0, 2024.05.01, (3)
    (?: \s* (?:[-_]+ | [.)](?!\d)) [-_\s]* | \s+)  # nothing is a counter without this: 1girl, 1.5 litres
    | ^[-_]+"""
)
_NUMBERED = re.compile(r"(?:[-_ ]?\(\d+\)|[-_]\d+|-flipped|[-_]+)+$")  # a cat_01, a cat (2), a cat-2-flipped
_HASH = re.compile(r"(?i)\b(?=[a-z]*\d)[\da-f]{8,}\b|\b[\da-f]{8}(?:-[\da-f]{4}){3}-[\da-f]{12}\b")


def words_of(stem: str) -> str:
    """The name of an image without its ending, less the numbers that cameras and scripts put before and after it."""
    return _NUMBERED.sub("", _COUNTED.sub("", stem)).strip()


def says_something(stem: str) -> bool:
    """Whether a name has a word in it that may describe the image: "a red cat_01", but not IMG_2031 nor a hash."""
    parts = re.split(r"[\W_]+", _HASH.sub(" ", stem))
    return any(_is_word(part) for part in parts)


def _is_word(part: str) -> bool:
    word = part.strip("0123456789")
    if len(word) < 2 and not re.match("[\u3040-\u9fff\uac00-\ud7af]", word):
        return False
    if re.search(r"\d", word) or word.lower() in EMPTY_WORDS:
        return False
    pieces = re.split("(?<=[a-z])(?=[A-Z])", word)  # of camel case, unless there are too many: then it is random
    return len(pieces) < 4 and any(piece.lower() not in EMPTY_WORDS for piece in pieces)
