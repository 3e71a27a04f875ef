// A mask being painted: its gray levels, the colors that show them, the brush, and undo steps. Independent of the page.
// In DreamArtist masks (kind _att) the level 127 is weight 1 and 255 is weight 5; in other masks 255 is weight 1.
(() => {
    const MAX_STEPS = 40;
    const ATTENTION = "_att";
    // Weight, red, green, blue, alpha.
    const COLORS = [[0, 59, 130, 246, 0], [0.1, 59, 130, 246, 0.6], [1, 34, 197, 94, 1], [3, 250, 204, 21, 1], [5, 239, 68, 68, 1]];
    const clamp = (number, min, max) => Math.min(max, Math.max(min, number));

    const maxWeight = (kind) => (kind === ATTENTION ? 5 : 1);
    const levelOf = (weight, kind) =>
        Math.round(kind !== ATTENTION ? 255 * weight : weight <= 1 ? 127 * weight : 127 + 32 * (weight - 1));
    const weightOf = (level, kind) => (kind !== ATTENTION ? level / 255 : level <= 127 ? level / 127 : 1 + (level - 127) / 32);

    function colorOf(weight) {
        const above = Math.max(1, COLORS.findIndex((each) => each[0] >= weight));
        const [[from, ...low], [to, ...high]] = [COLORS[above - 1], COLORS[above]];
        return low.map((each, n) => each + ((high[n] - each) * (weight - from)) / (to - from));
    }

    function gradient(max) {
        const stops = Array.from({ length: 21 }, (_, n) => colorOf((max * n) / 20));
        return `linear-gradient(to right, ${stops.map((each) => `rgba(${each.join()})`).join()})`;
    }

    // Makes a layer from the server's answer about an image; `drawn` is called with each area whose levels have changed.
    function make(answer, folder, name, levels, drawn) {
        const { width, height, kind, mask, image } = answer;
        const table = new Uint8ClampedArray(4 * 256);
        for (let level = 0; level < 256; level++) {
            const [red, green, blue, alpha] = colorOf(weightOf(level, kind));
            table.set([red, green, blue, 255 * alpha], 4 * level);
        }
        const all = { left: 0, top: 0, right: width, bottom: height };
        const [shown, colors] = [new ImageData(width, height), new Uint32Array(table.buffer)];
        const steps = { steps: [], at: 0, saved: 0, flat: flat(levels) };
        return { folder, name, width, height, kind, mask, image, levels, drawn, shown, colors, all, ...steps };
    }

    const unsaved = (layer) => layer.at !== layer.saved;

    // Whether nothing is left of the mask on disk, because all levels were equal at some point.
    const anew = (layer) => layer.flat || layer.steps.slice(0, layer.at).some((each) => each.flat);
    const flat = (levels) => levels.every((each) => each === levels[0]);

    // What the server needs to save the levels.
    const saveRequest = (layer) => ({ name: layer.name, kind: layer.kind, anew: anew(layer) });

    // The position of a pointer event in the image, in px; `rect` is the image's rectangle in the window.
    function positionOf({ width, height }, { clientX, clientY }, rect) {
        const x = ((clientX - rect.left) * width) / rect.width - 0.5; // pixel coordinates are those of its center
        return { x, y: ((clientY - rect.top) * height) / rect.height - 0.5 };
    }

    function changedBox({ width, height, levels }, before) {
        const box = { left: width, top: height, right: 0, bottom: 0 };
        for (let y = 0, i = 0; y < height; y++) {
            for (let x = 0; x < width; x++, i++) {
                if (levels[i] !== before[i]) {
                    box.left = Math.min(box.left, x);
                    box.right = Math.max(box.right, x + 1);
                    box.top = Math.min(box.top, y);
                    box.bottom = y + 1;
                }
            }
        }
        return box.right ? box : null;
    }

    function cut(levels, width, { left, top, right, bottom }) {
        const piece = new Uint8Array((right - left) * (bottom - top));
        for (let y = top, i = 0; y < bottom; y++, i += right - left) {
            piece.set(levels.subarray(y * width + left, y * width + right), i);
        }
        return piece;
    }

    // Adds an undo step for whatever differs from `before`.
    function commit(layer, before) {
        const box = changedBox(layer, before);
        if (!box) {
            return;
        }
        layer.steps.length = layer.at;
        layer.saved = layer.saved > layer.at ? -1 : layer.saved; // the saved state is no longer reachable
        const [was, is] = [before, layer.levels].map((levels) => cut(levels, layer.width, box));
        layer.steps.push({ box, before: was, after: is, flat: flat(layer.levels) });
        layer.at++;
        if (layer.steps.length > MAX_STEPS) {
            layer.flat = layer.steps.shift().flat || layer.flat;
            layer.at--;
            layer.saved = Math.max(-1, layer.saved - 1);
        }
    }

    // `fill` gets the levels to change, and a copy of them.
    function change(layer, fill) {
        const before = layer.levels.slice();
        fill(layer.levels, before);
        draw(layer, layer.all);
        commit(layer, before);
    }

    function step(layer, back) {
        const made = layer.steps[back ? layer.at - 1 : layer.at];
        if (!made) {
            return;
        }
        const piece = back ? made.before : made.after;
        const wide = made.box.right - made.box.left;
        for (let y = made.box.top, i = 0; y < made.box.bottom; y++, i += wide) {
            layer.levels.set(piece.subarray(i, i + wide), y * layer.width + made.box.left);
        }
        layer.at += back ? -1 : 1;
        draw(layer, made.box);
    }

    function draw(layer, box) {
        const pixels = new Uint32Array(layer.shown.data.buffer);
        for (let y = box.top; y < box.bottom; y++) {
            for (let i = y * layer.width + box.left; i < y * layer.width + box.right; i++) {
                pixels[i] = layer.colors[layer.levels[i]];
            }
        }
        layer.drawn(layer.shown, box);
    }

    // A stroke covers each pixel as strongly as the nearest point of its line, however often it passes over it.
    // `reach` is the brush's radius in px, `soft` the fraction of it that fades out.
    function begin(layer, from, level, reach, soft) {
        const stroke = { layer, from, level, reach, soft, before: layer.levels.slice(), cover: new Uint8Array(layer.levels.length) };
        paint(stroke, from);
        return stroke;
    }

    // Continues the stroke to `to`.
    function paint(stroke, to) {
        const { layer, from, level, reach, before, cover } = stroke;
        const [dx, dy] = [to.x - from.x, to.y - from.y];
        const long = dx * dx + dy * dy;
        const edge = Math.max(1, reach * stroke.soft);
        const box = {
            left: clamp(Math.floor(Math.min(from.x, to.x) - reach), 0, layer.width),
            top: clamp(Math.floor(Math.min(from.y, to.y) - reach), 0, layer.height),
            right: clamp(Math.ceil(Math.max(from.x, to.x) + reach) + 1, 0, layer.width),
            bottom: clamp(Math.ceil(Math.max(from.y, to.y) + reach) + 1, 0, layer.height),
        };
        for (let y = box.top; y < box.bottom; y++) {
            for (let x = box.left; x < box.right; x++) {
                const along = long ? clamp(((x - from.x) * dx + (y - from.y) * dy) / long, 0, 1) : 0;
                const far = Math.hypot(x - from.x - along * dx, y - from.y - along * dy);
                const covered = Math.round(255 * clamp((reach + 0.5 - far) / edge, 0, 1));
                const i = y * layer.width + x;
                if (covered > cover[i]) {
                    cover[i] = covered;
                    layer.levels[i] = Math.round(before[i] + ((level - before[i]) * covered) / 255);
                }
            }
        }
        stroke.from = to;
        draw(layer, box);
    }

    function end({ layer, before }, kept) {
        if (!kept) {
            layer.levels.set(before);
            draw(layer, layer.all);
        }
        commit(layer, before);
    }

    // Weight 0 becomes 1, and weights of 1 or more become 0.
    const inverted = (level, kind) => (kind === ATTENTION ? Math.max(0, 127 - level) : 255 - level);

    const brush = { positionOf, begin, paint, end };
    const editing = { make, unsaved, saveRequest, change, step, draw, inverted };
    window.tiTrainerMaskLayer = { ATTENTION, maxWeight, levelOf, gradient, ...editing, ...brush };
})();
