// The Paint masks panel: shows a folder's images, paints on one, and keeps unsaved masks while the page is open.
// mask_layer.js does the painting, mask_requests.js talks to the server. Images are identified by their file names.
(() => {
    let dataset = { folder: "", images: [] };
    const drafts = new Map(); // unsaved layers, by folder and name
    let layer = null; // the layer being painted
    let wanted = ""; // the name of the image to show next
    let choosing = false;
    let busy = false;
    let stroke = null;
    let tool = "brush";
    let weight = 1; // of the brush; masks with a lower maximum use that instead

    const root = () => document.querySelector("gradio-app")?.shadowRoot ?? document;
    const part = (name) => root().querySelector(`.ti-masks [data-part="${name}"]`);
    const button = (name) => root().querySelector(`.ti-masks [data-do="${name}"]`);
    const value = (name) => Number(part(name).value);
    const key = (name) => `${dataset.folder}\n${name}`;
    const layers = () => window.tiTrainerMaskLayer;
    const requests = () => window.tiTrainerRequests;

    const showMessage = (html) => { part("message").innerHTML = html ?? ""; };

    // Sends a request with the tools disabled; shows the reason and returns null if it fails.
    async function work(what, long) {
        [busy, part("tools").disabled] = [true, true];
        part("image-area").setAttribute("aria-busy", "true");
        try {
            return await requests().send({ folder: dataset.folder, ...what }, long);
        } catch (failed) {
            showMessage(failed.message ?? requests().notice("error", String(failed)));
            return null;
        } finally {
            [busy, part("tools").disabled] = [false, !layer];
            part("image-area").removeAttribute("aria-busy");
        }
    }

    // ---- The folder's images, and the selected one.

    // A folder that cannot be opened closes the previous one, so that nothing is saved under the wrong name.
    function opened(text) {
        if (!root().querySelector(".ti-masks[data-ready]")) {
            setTimeout(() => opened(text), 200); // gradio has not created this tab's content yet
            return;
        }
        const { message, folder = "", images = [] } = JSON.parse(text || "{}");
        keepDraft();
        [dataset, layer, wanted, stroke] = [{ folder, images }, null, "", null];
        layOut();
        showMessage(message);
        if (folder) {
            choose((images.find((each) => !each.masked) ?? images[0]).name).then(() => loadThumbs(dataset));
        }
    }

    function layOut() {
        part("workspace").hidden = !dataset.folder;
        part("folder").textContent = dataset.folder;
        part("strip").replaceChildren(...dataset.images.map(({ name, thumb }) => {
            const made = document.createElement("button");
            made.type = "button";
            made.dataset.name = name;
            const image = made.appendChild(document.createElement("img"));
            [image.alt, image.src, image.draggable] = ["", thumb ?? "data:,", false];
            return made;
        }));
        show();
    }

    async function loadThumbs(mine) {
        for (let from = 0; mine === dataset && from < mine.images.length;) {
            const answer = await requests().send({ do: "thumbs", folder: mine.folder, from }).catch(() => null);
            if (mine !== dataset || !answer?.thumbs.length) {
                return;
            }
            answer.thumbs.forEach(([name, thumb], n) => {
                if (mine.images[from + n]?.name === name) {
                    mine.images[from + n].thumb = thumb;
                    part("strip").children[from + n].firstChild.src = thumb;
                }
            });
            from += answer.thumbs.length;
        }
    }

    // Keeps an unsaved layer until its image is selected again.
    function keepDraft() {
        if (layer) {
            drafts[layers().unsaved(layer) ? "set" : "delete"](`${layer.folder}\n${layer.name}`, layer);
        }
    }

    async function choose(name) {
        wanted = name;
        showMessage("");
        if (choosing) {
            return; // the loop below picks it up
        }
        choosing = true;
        while (wanted && wanted !== layer?.name) {
            const [next, mine] = [wanted, dataset];
            const made = drafts.get(key(next)) ?? (await loaded(next));
            if (next !== wanted || mine !== dataset) {
                continue; // another image was selected meanwhile
            }
            if (!made) {
                refresh();
                break; // Next continues from here
            }
            keepDraft();
            [layer, stroke] = [made, null];
            show();
        }
        choosing = false;
    }

    async function loaded(name) {
        const { folder } = dataset;
        const answer = await work({ do: "load", name });
        if (!answer) {
            return null;
        }
        showMessage(answer.message);
        const levels = answer.levels ? await requests().unpacked(answer.levels) : new Uint8Array(answer.width * answer.height);
        return layers().make(answer, folder, name, levels, drawn);
    }

    function drawn(shown, { left, top, right, bottom }) {
        part("canvas").getContext("2d").putImageData(shown, 0, 0, left, top, right - left, bottom - top);
    }

    function show() {
        const [canvas, holder, row] = [part("canvas"), part("image-area"), part("strip")];
        [holder.hidden, part("tools").disabled] = [!layer, busy || !layer];
        refresh();
        if (!layer) {
            return;
        }
        [canvas.width, canvas.height] = [layer.width, layer.height];
        part("image").src = layer.image;
        holder.style.aspectRatio = `${layer.width} / ${layer.height}`;
        holder.style.width = `min(100%, ${(70 * layer.width) / layer.height}vh)`;
        layers().draw(layer, layer.all);
        const chosen = row.querySelector("[aria-current]");
        row.scrollTo({ left: chosen.offsetLeft - (row.clientWidth - chosen.clientWidth) / 2, behavior: "smooth" });
    }

    const indexOf = (name) => dataset.images.findIndex((each) => each.name === name);

    async function step(by) {
        const next = dataset.images[indexOf(wanted) + by];
        if (next) {
            await choose(next.name);
        }
    }

    // Updates the image's title, the strip and the buttons.
    function refresh() {
        const dirty = layer && layers().unsaved(layer);
        const number = indexOf(layer?.name ?? wanted);
        const state = dirty ? "unsaved" : layer?.mask || "no mask";
        part("place").textContent = layer ? `${number + 1} of ${dataset.images.length}: ${layer.name} (${state})` : "";
        dataset.images.forEach(({ name, masked }, n) => {
            const mark = (n === number ? dirty : drafts.has(key(name))) ? "unsaved" : masked ? "masked" : "";
            const thumb = part("strip").children[n];
            thumb.dataset.mark = mark;
            thumb.title = name + { unsaved: ": unsaved mask", masked: ": has a mask", "": "" }[mark];
            n === number ? thumb.setAttribute("aria-current", "true") : thumb.removeAttribute("aria-current");
        });
        button("undo").disabled = !layer?.at;
        button("redo").disabled = layer?.at === layer?.steps.length;
        button("delete").disabled = !layer?.mask;
        button("previous").disabled = number < 1;
        button("next").disabled = number === dataset.images.length - 1;
        updateSliders();
    }

    // ---- The brush.

    const radius = () => Math.max(0.5, (value("size") / 200) * Math.max(layer.width, layer.height));

    const positionOf = (event) => layers().positionOf(layer, event, part("canvas").getBoundingClientRect());

    function began(event) {
        const [left, right, pensEnd] = [event.button === 0, event.button === 2, event.button === 5];
        if (!layer || busy || stroke || !event.isPrimary || !(left || right || pensEnd)) {
            return;
        }
        const erases = right || pensEnd || tool === "eraser";
        const level = erases ? 0 : layers().levelOf(value("weight"), layer.kind);
        stroke = layers().begin(layer, positionOf(event), level, radius(), value("soft") / 100);
        stroke.pointer = event.pointerId;
        event.preventDefault();
        part("canvas").setPointerCapture(event.pointerId);
        part("canvas").focus({ preventScroll: true });
    }

    function moved(event) {
        ring(event);
        if (stroke?.pointer === event.pointerId) {
            const between = event.getCoalescedEvents?.() ?? [];
            (between.length ? between : [event]).forEach((each) => layers().paint(stroke, positionOf(each)));
        }
    }

    function ended(event) {
        if (stroke?.pointer === event.pointerId) {
            layers().end(stroke, event.type === "pointerup"); // a cancelled stroke was a gesture such as pinch zoom
            stroke = null;
            refresh();
        }
    }

    // Shows the brush as a circle around the pointer.
    function ring(event) {
        const [rect, circle] = [part("canvas").getBoundingClientRect(), part("ring")];
        const side = layer ? (2 * radius() * rect.width) / layer.width : 0;
        const [left, top] = [event.clientX - rect.left, event.clientY - rect.top];
        circle.hidden = event.type === "pointerleave" || event.pointerType === "touch";
        circle.style.cssText = `width: ${side}px; height: ${side}px; left: ${left}px; top: ${top}px`;
    }

    // Updates the sliders' values, and the range of weights to that of this mask.
    function updateSliders(event) {
        const [slider, max] = [part("weight"), layers().maxWeight(layer?.kind ?? layers().ATTENTION)];
        weight = event?.target === slider ? Number(slider.value) : weight;
        [slider.max, slider.step] = [max, max === 1 ? 0.05 : 0.1];
        slider.value = Math.min(weight, max);
        slider.style.backgroundImage = layers().gradient(max);
        part("weights").dataset.max = max;
        const effect = value("weight") === 0 ? "ignored" : value("weight") < 1 ? "less" : value("weight") === 1 ? "normal" : "more";
        part("weight-value").textContent = tool === "eraser" ? "(0 for the eraser)" : `${slider.value} (${effect})`;
        for (const name of ["size", "soft", "opacity"]) {
            part(`${name}-value`).textContent = `${value(name)}%`;
        }
        part("canvas").style.opacity = value("opacity") / 100;
        for (const name of ["brush", "eraser"]) {
            button(name).setAttribute("aria-pressed", tool === name);
        }
    }

    function useTool(name) {
        tool = name;
        updateSliders();
    }

    function change(fill) {
        layers().change(layer, fill);
        refresh();
    }

    function undo(back) {
        layers().step(layer, back);
        refresh();
    }

    function resize(by) {
        part("size").value = by > 1 ? Math.max(value("size") + 0.5, value("size") * by) : value("size") * by;
        updateSliders();
    }

    // ---- Requests.

    async function save() {
        const [mine, at] = [layer, layer.at];
        const answer = await work({ do: "save", ...layers().saveRequest(mine), levels: await requests().packed(mine.levels) });
        if (!answer || mine !== layer) {
            return;
        }
        [mine.saved, mine.mask] = [at, answer.mask];
        setMasked(true);
        refresh();
        showMessage("");
        if (part("advance").checked) {
            await step(1);
        }
        part("message").insertAdjacentHTML("afterbegin", answer.message);
    }

    async function remove() {
        const mine = layer;
        const answer = await work({ do: "delete", name: mine.name });
        if (answer && mine === layer) {
            setMasked(false);
            layers().change(mine, (levels) => levels.fill(0)); // undo restores it, as an unsaved mask
            [mine.mask, mine.saved] = ["", mine.at];
            refresh();
            showMessage(answer.message);
        }
    }

    // Images whose names differ only in the extension share a mask.
    function setMasked(is) {
        const stem = (name) => name.replace(/\.[^.]*$/, "");
        dataset.images.filter(({ name }) => stem(name) === stem(layer.name)).forEach((each) => { each.masked = is; });
    }

    async function spread() {
        const mine = layer;
        showMessage(requests().notice("info", "Waiting for the model…"));
        const answer = await work({ do: "spread", name: mine.name, levels: await requests().packed(mine.levels) }, true);
        if (answer && mine === layer) {
            const levels = await requests().unpacked(answer.levels);
            change((here) => here.set(levels));
            showMessage(answer.message);
        }
    }

    // ---- Buttons and keys.

    const actions = {
        brush: () => useTool("brush"),
        eraser: () => useTool("eraser"),
        undo: () => undo(true),
        redo: () => undo(false),
        fill: () => change((levels) => levels.fill(layers().levelOf(value("weight"), layer.kind))),
        clear: () => change((levels) => levels.fill(0)),
        invert: () => change((levels, before) => levels.set(before.map((level) => layers().inverted(level, layer.kind)))),
        spread,
        save,
        delete: remove,
        previous: () => step(-1),
        next: () => step(1),
    };

    function keyDown(event) {
        const controls = { z: () => undo(!event.shiftKey), y: () => undo(false) };
        const keys = { ArrowLeft: () => step(-1), ArrowRight: () => step(1), "[": () => resize(0.8), "]": () => resize(1.25) };
        const act = event.ctrlKey || event.metaKey ? controls[event.key.toLowerCase()] : keys[event.key];
        if (act && layer) {
            event.preventDefault();
            event.stopPropagation();
            run(act);
        }
    }

    function clicked(event) {
        const thumb = event.target.closest("[data-name]");
        const made = event.target.closest("[data-do]");
        if (thumb || (made && (layer || !part("tools").contains(made)))) {
            run(thumb ? () => choose(thumb.dataset.name) : actions[made.dataset.do]);
        }
    }

    // Ignores clicks and keys during a stroke, and during any request but that of an image.
    function run(act) {
        if (!stroke && (!busy || choosing)) {
            act();
        }
    }

    // gradio creates a tab's content late, and sometimes again: attaches our listeners whenever it is new.
    function attach() {
        const here = root().querySelector(".ti-masks:not([data-ready])");
        if (!here) {
            return;
        }
        here.dataset.ready = "";
        const canvas = part("canvas");
        here.addEventListener("click", clicked);
        here.addEventListener("input", updateSliders);
        canvas.addEventListener("pointerdown", began);
        ["pointermove", "pointerleave"].forEach((name) => canvas.addEventListener(name, moved));
        ["pointerup", "pointercancel"].forEach((name) => canvas.addEventListener(name, ended));
        canvas.addEventListener("keydown", keyDown);
        canvas.addEventListener("contextmenu", (event) => event.preventDefault());
        layOut();
    }

    window.addEventListener("beforeunload", (event) => {
        keepDraft();
        if (drafts.size) {
            event.preventDefault();
            event.returnValue = "";
        }
    });
    window.tiTrainerMasks = { opened, answered: (text) => requests().answered(text) };
    setInterval(attach, 200);
})();
