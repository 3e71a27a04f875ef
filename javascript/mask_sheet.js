// A sheet of the panel Paint masks: an image's greys, their colours, the brush, and steps to be taken back.
// Knows no page. DreamArtist's greys (kind _att): 127 is weight 1, 255 is 5; of other masks 255 is 1.
(() => {
    const MOST_STEPS = 40;
    const ATTENTION = "_att";
    // Weight, red, green, blue, alpha.
    const COLOURS = [[0, 59, 130, 246, 0], [0.1, 59, 130, 246, 0.6], [1, 34, 197, 94, 1], [3, 250, 204, 21, 1], [5, 239, 68, 68, 1]];
    const within = (number, least, most) => Math.min(most, Math.max(least, number));

    const most = (kind) => (kind === ATTENTION ? 5 : 1);
    const greyOf = (weight, kind) =>
        Math.round(kind !== ATTENTION ? 255 * weight : weight <= 1 ? 127 * weight : 127 + 32 * (weight - 1));
    const weightOf = (grey, kind) => (kind !== ATTENTION ? grey / 255 : grey <= 127 ? grey / 127 : 1 + (grey - 127) / 32);

    function colourOf(weight) {
        const above = Math.max(1, COLOURS.findIndex((each) => each[0] >= weight));
        const [[from, ...low], [to, ...high]] = [COLOURS[above - 1], COLOURS[above]];
        return low.map((each, n) => each + ((high[n] - each) * (weight - from)) / (to - from));
    }

    function gradient(most) {
        const stops = Array.from({ length: 21 }, (_, n) => colourOf((most * n) / 20));
        return `linear-gradient(to right, ${stops.map((each) => `rgba(${each.join()})`).join()})`;
    }

    // Of what the program told of an image; `drawn` is called with each part whose greys have changed.
    function make(answer, folder, name, greys, drawn) {
        const { width, height, kind, mask, image } = answer;
        const table = new Uint8ClampedArray(4 * 256);
        for (let grey = 0; grey < 256; grey++) {
            const [red, green, blue, alpha] = colourOf(weightOf(grey, kind));
            table.set([red, green, blue, 255 * alpha], 4 * grey);
        }
        const all = { left: 0, top: 0, right: width, bottom: height };
        const [shown, colours] = [new ImageData(width, height), new Uint32Array(table.buffer)];
        const steps = { steps: [], at: 0, saved: 0, flat: flat(greys) };
        return { folder, name, width, height, kind, mask, image, greys, drawn, shown, colours, all, ...steps };
    }

    const unsaved = (sheet) => sheet.at !== sheet.saved;

    // Whether nothing of the mask that was there is left in it: since then everything was the same once.
    const anew = (sheet) => sheet.flat || sheet.steps.slice(0, sheet.at).some((each) => each.flat);
    const flat = (greys) => greys.every((each) => each === greys[0]);

    // What the program must know of it to save its greys.
    const saying = (sheet) => ({ name: sheet.name, kind: sheet.kind, anew: anew(sheet) });

    // Where on a sheet a point of the window is, in px; `seen` is the sheet's rectangle there.
    function placed({ width, height }, { clientX, clientY }, seen) {
        const x = ((clientX - seen.left) * width) / seen.width - 0.5; // a pixel is at its middle
        return { x, y: ((clientY - seen.top) * height) / seen.height - 0.5 };
    }

    function differing({ width, height, greys }, before) {
        const box = { left: width, top: height, right: 0, bottom: 0 };
        for (let y = 0, i = 0; y < height; y++) {
            for (let x = 0; x < width; x++, i++) {
                if (greys[i] !== before[i]) {
                    box.left = Math.min(box.left, x);
                    box.right = Math.max(box.right, x + 1);
                    box.top = Math.min(box.top, y);
                    box.bottom = y + 1;
                }
            }
        }
        return box.right ? box : null;
    }

    function cut(greys, width, { left, top, right, bottom }) {
        const piece = new Uint8Array((right - left) * (bottom - top));
        for (let y = top, i = 0; y < bottom; y++, i += right - left) {
            piece.set(greys.subarray(y * width + left, y * width + right), i);
        }
        return piece;
    }

    // What differs from before becomes a step that can be taken back.
    function commit(sheet, before) {
        const box = differing(sheet, before);
        if (!box) {
            return;
        }
        sheet.steps.length = sheet.at;
        sheet.saved = sheet.saved > sheet.at ? -1 : sheet.saved; // what was saved is not to be come back to any more
        const [was, is] = [before, sheet.greys].map((greys) => cut(greys, sheet.width, box));
        sheet.steps.push({ box, before: was, after: is, flat: flat(sheet.greys) });
        sheet.at++;
        if (sheet.steps.length > MOST_STEPS) {
            sheet.flat = sheet.steps.shift().flat || sheet.flat;
            sheet.at--;
            sheet.saved = Math.max(-1, sheet.saved - 1);
        }
    }

    // `fill` is given the greys to change, and a copy.
    function change(sheet, fill) {
        const before = sheet.greys.slice();
        fill(sheet.greys, before);
        draw(sheet, sheet.all);
        commit(sheet, before);
    }

    function step(sheet, back) {
        const made = sheet.steps[back ? sheet.at - 1 : sheet.at];
        if (!made) {
            return;
        }
        const piece = back ? made.before : made.after;
        const wide = made.box.right - made.box.left;
        for (let y = made.box.top, i = 0; y < made.box.bottom; y++, i += wide) {
            sheet.greys.set(piece.subarray(i, i + wide), y * sheet.width + made.box.left);
        }
        sheet.at += back ? -1 : 1;
        draw(sheet, made.box);
    }

    function draw(sheet, box) {
        const pixels = new Uint32Array(sheet.shown.data.buffer);
        for (let y = box.top; y < box.bottom; y++) {
            for (let i = y * sheet.width + box.left; i < y * sheet.width + box.right; i++) {
                pixels[i] = sheet.colours[sheet.greys[i]];
            }
        }
        sheet.drawn(sheet.shown, box);
    }

    // A stroke covers each place as much as the nearest point of its line does, however often it passes.
    // `reach` is the brush's radius in px, `soft` the part of it that fades, 0 to 1.
    function begin(sheet, from, grey, reach, soft) {
        const stroke = { sheet, from, grey, reach, soft, before: sheet.greys.slice(), cover: new Uint8Array(sheet.greys.length) };
        paint(stroke, from);
        return stroke;
    }

    // From where the stroke is to `to`.
    function paint(stroke, to) {
        const { sheet, from, grey, reach, before, cover } = stroke;
        const [dx, dy] = [to.x - from.x, to.y - from.y];
        const long = dx * dx + dy * dy;
        const edge = Math.max(1, reach * stroke.soft);
        const box = {
            left: within(Math.floor(Math.min(from.x, to.x) - reach), 0, sheet.width),
            top: within(Math.floor(Math.min(from.y, to.y) - reach), 0, sheet.height),
            right: within(Math.ceil(Math.max(from.x, to.x) + reach) + 1, 0, sheet.width),
            bottom: within(Math.ceil(Math.max(from.y, to.y) + reach) + 1, 0, sheet.height),
        };
        for (let y = box.top; y < box.bottom; y++) {
            for (let x = box.left; x < box.right; x++) {
                const along = long ? within(((x - from.x) * dx + (y - from.y) * dy) / long, 0, 1) : 0;
                const far = Math.hypot(x - from.x - along * dx, y - from.y - along * dy);
                const covered = Math.round(255 * within((reach + 0.5 - far) / edge, 0, 1));
                const i = y * sheet.width + x;
                if (covered > cover[i]) {
                    cover[i] = covered;
                    sheet.greys[i] = Math.round(before[i] + ((grey - before[i]) * covered) / 255);
                }
            }
        }
        stroke.from = to;
        draw(sheet, box);
    }

    function end({ sheet, before }, kept) {
        if (!kept) {
            sheet.greys.set(before);
            draw(sheet, sheet.all);
        }
        commit(sheet, before);
    }

    // What counts does not, and what does not counts 1.
    const inverted = (grey, kind) => (kind === ATTENTION ? Math.max(0, 127 - grey) : 255 - grey);

    const brush = { placed, begin, paint, end };
    window.tiTrainerSheet = { ATTENTION, most, greyOf, gradient, make, unsaved, saying, change, step, draw, inverted, ...brush };
})();
