// The panel Paint masks: shows a folder's images, paints on one, and keeps what is not saved while the page is open.
// What painting does is in mask_sheet.js, how the program is asked in mask_asking.js. An image is its name in the folder.
(() => {
    let shelf = { folder: "", images: [] };
    const drafts = new Map(); // sheets that are not saved, by folder and name
    let sheet = null; // what is painted on
    let wanted = ""; // the name of the image to be shown
    let choosing = false;
    let busy = false;
    let stroke = null;
    let tool = "brush";
    let weight = 1; // of the brush, where the mask has such weights

    const root = () => document.querySelector("gradio-app")?.shadowRoot ?? document;
    const part = (name) => root().querySelector(`.ti-masks [data-part="${name}"]`);
    const button = (name) => root().querySelector(`.ti-masks [data-do="${name}"]`);
    const value = (name) => Number(part(name).value);
    const key = (name) => `${shelf.folder}\n${name}`;
    const painting = () => window.tiTrainerSheet;
    const asking = () => window.tiTrainerAsking;

    const say = (html) => { part("said").innerHTML = html ?? ""; };

    // Asks while nothing else can be done; null, and the reason said, if it fails.
    async function work(what, long) {
        [busy, part("tools").disabled] = [true, true];
        part("sheet").setAttribute("aria-busy", "true");
        try {
            return await asking().ask({ folder: shelf.folder, ...what }, long);
        } catch (failed) {
            say(failed.said ?? asking().notice("error", String(failed)));
            return null;
        } finally {
            [busy, part("tools").disabled] = [false, !sheet];
            part("sheet").removeAttribute("aria-busy");
        }
    }

    // ---- The folder's images, and the one that is chosen.

    // What could not be opened leaves nothing open, or it would be painted under another folder's name.
    function opened(text) {
        if (!root().querySelector(".ti-masks[data-ready]")) {
            setTimeout(() => opened(text), 200); // another tab has only just led here
            return;
        }
        const { said, folder = "", images = [] } = JSON.parse(text || "{}");
        leave();
        [shelf, sheet, wanted, stroke] = [{ folder, images }, null, "", null];
        lay();
        say(said);
        if (folder) {
            choose((images.find((each) => !each.masked) ?? images[0]).name).then(() => thumbs(shelf));
        }
    }

    function lay() {
        part("room").hidden = !shelf.folder;
        part("folder").textContent = shelf.folder;
        part("strip").replaceChildren(...shelf.images.map(({ name, thumb }) => {
            const made = document.createElement("button");
            made.type = "button";
            made.dataset.name = name;
            const image = made.appendChild(document.createElement("img"));
            [image.alt, image.src, image.draggable] = ["", thumb ?? "data:,", false];
            return made;
        }));
        show();
    }

    async function thumbs(mine) {
        for (let from = 0; mine === shelf && from < mine.images.length;) {
            const answer = await asking().ask({ do: "thumbs", folder: mine.folder, from }).catch(() => null);
            if (mine !== shelf || !answer?.thumbs.length) {
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

    // Keeps what is not saved for when its image is chosen again.
    function leave() {
        if (sheet) {
            drafts[painting().unsaved(sheet) ? "set" : "delete"](`${sheet.folder}\n${sheet.name}`, sheet);
        }
    }

    async function choose(name) {
        wanted = name;
        say("");
        if (choosing) {
            return; // the one that loads looks again at the end
        }
        choosing = true;
        while (wanted && wanted !== sheet?.name) {
            const [next, mine] = [wanted, shelf];
            const made = drafts.get(key(next)) ?? (await loaded(next));
            if (next !== wanted || mine !== shelf) {
                continue; // another one was chosen meanwhile
            }
            if (!made) {
                told();
                break; // and the next button leads on from it
            }
            leave();
            [sheet, stroke] = [made, null];
            show();
        }
        choosing = false;
    }

    async function loaded(name) {
        const { folder } = shelf;
        const answer = await work({ do: "load", name });
        if (!answer) {
            return null;
        }
        say(answer.said);
        const greys = answer.greys ? await asking().unpacked(answer.greys) : new Uint8Array(answer.width * answer.height);
        return painting().make(answer, folder, name, greys, drawn);
    }

    function drawn(shown, { left, top, right, bottom }) {
        part("canvas").getContext("2d").putImageData(shown, 0, 0, left, top, right - left, bottom - top);
    }

    function show() {
        const [canvas, holder, row] = [part("canvas"), part("sheet"), part("strip")];
        [holder.hidden, part("tools").disabled] = [!sheet, busy || !sheet];
        told();
        if (!sheet) {
            return;
        }
        [canvas.width, canvas.height] = [sheet.width, sheet.height];
        part("image").src = sheet.image;
        holder.style.aspectRatio = `${sheet.width} / ${sheet.height}`;
        holder.style.width = `min(100%, ${(70 * sheet.width) / sheet.height}vh)`;
        painting().draw(sheet, sheet.all);
        const chosen = row.querySelector("[aria-current]");
        row.scrollTo({ left: chosen.offsetLeft - (row.clientWidth - chosen.clientWidth) / 2, behavior: "smooth" });
    }

    const place = (name) => shelf.images.findIndex((each) => each.name === name);

    async function beside(by) {
        const next = shelf.images[place(wanted) + by];
        if (next) {
            await choose(next.name);
        }
    }

    // What is said of the image, in the strip and by the buttons, as things are now.
    function told() {
        const dirty = sheet && painting().unsaved(sheet);
        const number = place(sheet?.name ?? wanted);
        const state = dirty ? "not saved yet" : sheet?.mask || "no mask";
        part("place").textContent = sheet ? `${number + 1} of ${shelf.images.length}: ${sheet.name} (${state})` : "";
        shelf.images.forEach(({ name, masked }, n) => {
            const mark = (n === number ? dirty : drafts.has(key(name))) ? "unsaved" : masked ? "masked" : "";
            const thumb = part("strip").children[n];
            thumb.dataset.mark = mark;
            thumb.title = name + { unsaved: ": painted, not saved yet", masked: ": has a mask", "": "" }[mark];
            n === number ? thumb.setAttribute("aria-current", "true") : thumb.removeAttribute("aria-current");
        });
        button("undo").disabled = !sheet?.at;
        button("redo").disabled = sheet?.at === sheet?.steps.length;
        button("delete").disabled = !sheet?.mask;
        button("previous").disabled = number < 1;
        button("next").disabled = number === shelf.images.length - 1;
        slid();
    }

    // ---- The brush.

    const radius = () => Math.max(0.5, (value("size") / 200) * Math.max(sheet.width, sheet.height));

    const placed = (event) => painting().placed(sheet, event, part("canvas").getBoundingClientRect());

    function began(event) {
        const [left, right, pensEnd] = [event.button === 0, event.button === 2, event.button === 5];
        if (!sheet || busy || stroke || !event.isPrimary || !(left || right || pensEnd)) {
            return;
        }
        const erases = right || pensEnd || tool === "eraser";
        const grey = erases ? 0 : painting().greyOf(value("weight"), sheet.kind);
        stroke = painting().begin(sheet, placed(event), grey, radius(), value("soft") / 100);
        stroke.pointer = event.pointerId;
        event.preventDefault();
        part("canvas").setPointerCapture(event.pointerId);
        part("canvas").focus({ preventScroll: true });
    }

    function moved(event) {
        ring(event);
        if (stroke?.pointer === event.pointerId) {
            const between = event.getCoalescedEvents?.() ?? [];
            (between.length ? between : [event]).forEach((each) => painting().paint(stroke, placed(each)));
        }
    }

    function ended(event) {
        if (stroke?.pointer === event.pointerId) {
            painting().end(stroke, event.type === "pointerup"); // what is cancelled was no painting: two fingers, say
            stroke = null;
            told();
        }
    }

    // A ring as large as the brush follows the pointer.
    function ring(event) {
        const [seen, around] = [part("canvas").getBoundingClientRect(), part("ring")];
        const side = sheet ? (2 * radius() * seen.width) / sheet.width : 0;
        const [left, top] = [event.clientX - seen.left, event.clientY - seen.top];
        around.hidden = event.type === "pointerleave" || event.pointerType === "touch";
        around.style.cssText = `width: ${side}px; height: ${side}px; left: ${left}px; top: ${top}px`;
    }

    // What sliders say, and the weights that this mask can have.
    function slid(event) {
        const [slider, most] = [part("weight"), painting().most(sheet?.kind ?? painting().ATTENTION)];
        weight = event?.target === slider ? Number(slider.value) : weight;
        [slider.max, slider.step] = [most, most === 1 ? 0.05 : 0.1];
        slider.value = Math.min(weight, most);
        slider.style.backgroundImage = painting().gradient(most);
        part("weights").dataset.most = most;
        const counts = [0, 1].includes(value("weight")) ? ["not at all", "as usual"][value("weight")] : value("weight") < 1 ? "less" : "more";
        part("weight-said").textContent = tool === "eraser" ? "(the eraser’s is 0)" : `${slider.value}: counts ${counts}`;
        for (const name of ["size", "soft", "colours"]) {
            part(`${name}-said`).textContent = `${value(name)} %`;
        }
        part("canvas").style.opacity = value("colours") / 100;
        for (const name of ["brush", "eraser"]) {
            button(name).setAttribute("aria-pressed", tool === name);
        }
    }

    function chosen(name) {
        tool = name;
        slid();
    }

    function changed(fill) {
        painting().change(sheet, fill);
        told();
    }

    function stepped(back) {
        painting().step(sheet, back);
        told();
    }

    function resized(by) {
        part("size").value = by > 1 ? Math.max(value("size") + 0.5, value("size") * by) : value("size") * by;
        slid();
    }

    // ---- What is asked of the program.

    async function save() {
        const [mine, at] = [sheet, sheet.at];
        const answer = await work({ do: "save", ...painting().saying(mine), greys: await asking().packed(mine.greys) });
        if (!answer || mine !== sheet) {
            return;
        }
        [mine.saved, mine.mask] = [at, answer.mask];
        masked(true);
        told();
        say("");
        if (part("on").checked) {
            await beside(1);
        }
        part("said").insertAdjacentHTML("afterbegin", answer.said);
    }

    async function remove() {
        const mine = sheet;
        const answer = await work({ do: "delete", name: mine.name });
        if (answer && mine === sheet) {
            masked(false);
            painting().change(mine, (greys) => greys.fill(0)); // an undo brings it back, to be saved again
            [mine.mask, mine.saved] = ["", mine.at];
            told();
            say(answer.said);
        }
    }

    // Images that differ in nothing but their format share a mask.
    function masked(is) {
        const stem = (name) => name.replace(/\.[^.]*$/, "");
        shelf.images.filter(({ name }) => stem(name) === stem(sheet.name)).forEach((each) => { each.masked = is; });
    }

    async function spread() {
        const mine = sheet;
        say(asking().notice("info", "Waiting for the model, which then looks at the image…"));
        const answer = await work({ do: "spread", name: mine.name, greys: await asking().packed(mine.greys) }, true);
        if (answer && mine === sheet) {
            const greys = await asking().unpacked(answer.greys);
            changed((here) => here.set(greys));
            say(answer.said);
        }
    }

    // ---- What buttons and keys do.

    const does = {
        brush: () => chosen("brush"),
        eraser: () => chosen("eraser"),
        undo: () => stepped(true),
        redo: () => stepped(false),
        fill: () => changed((greys) => greys.fill(painting().greyOf(value("weight"), sheet.kind))),
        clear: () => changed((greys) => greys.fill(0)),
        invert: () => changed((greys, before) => greys.set(before.map((grey) => painting().inverted(grey, sheet.kind)))),
        spread,
        save,
        delete: remove,
        previous: () => beside(-1),
        next: () => beside(1),
    };

    function pressed(event) {
        const controls = { z: () => stepped(!event.shiftKey), y: () => stepped(false) };
        const keys = { ArrowLeft: () => beside(-1), ArrowRight: () => beside(1), "[": () => resized(0.8), "]": () => resized(1.25) };
        const act = event.ctrlKey || event.metaKey ? controls[event.key.toLowerCase()] : keys[event.key];
        if (act && sheet) {
            event.preventDefault();
            event.stopPropagation();
            used(act);
        }
    }

    function clicked(event) {
        const thumb = event.target.closest("[data-name]");
        const made = event.target.closest("[data-do]");
        if (thumb || (made && (sheet || !part("tools").contains(made)))) {
            used(thumb ? () => choose(thumb.dataset.name) : does[made.dataset.do]);
        }
    }

    // Not within a stroke, nor while something is waited for that is no image.
    function used(act) {
        if (!stroke && (!busy || choosing)) {
            act();
        }
    }

    // gradio makes a tab's content when it likes: whenever ours is there anew, it is given life.
    function revive() {
        const here = root().querySelector(".ti-masks:not([data-ready])");
        if (!here) {
            return;
        }
        here.dataset.ready = "";
        const canvas = part("canvas");
        here.addEventListener("click", clicked);
        here.addEventListener("input", slid);
        canvas.addEventListener("pointerdown", began);
        ["pointermove", "pointerleave"].forEach((name) => canvas.addEventListener(name, moved));
        ["pointerup", "pointercancel"].forEach((name) => canvas.addEventListener(name, ended));
        canvas.addEventListener("keydown", pressed);
        canvas.addEventListener("contextmenu", (event) => event.preventDefault());
        lay();
    }

    window.addEventListener("beforeunload", (event) => {
        leave();
        if (drafts.size) {
            event.preventDefault();
            event.returnValue = "";
        }
    });
    window.tiTrainerMasks = { opened, answered: (text) => asking().answered(text) };
    setInterval(revive, 200);
})();
