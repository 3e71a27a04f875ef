// How the panel Paint masks asks the program: through a hidden box, whose change gradio passes on, one question at a time.
// Greys travel deflated, in base64: a browser that guards against fingerprints alters what it reads of images.
(() => {
    const [SHORT_MS, LONG_MS] = [60000, 1800000]; // how long an answer may take; who waits for the model waits long
    let waiting = null;
    let last = Promise.resolve();
    let count = 0;

    const root = () => document.querySelector("gradio-app")?.shadowRoot ?? document;

    // The answer; what is thrown has a notice in `said`. `long`: one that waits for the model.
    function ask(what, long = false) {
        const asked = last.then(() => new Promise((resolve, reject) => {
            const id = `${Date.now()}-${++count}`;
            const late = setTimeout(() => answered("{}"), long ? LONG_MS : SHORT_MS);
            const put = () => {
                const name = long ? "asked_long" : "asked";
                const box = root().querySelector(`#ti_trainer_masks_${name} :is(textarea, input)`);
                if (!box.value.includes(id)) {
                    box.value = JSON.stringify({ ...what, id });
                    box.dispatchEvent(new Event("input", { bubbles: true }));
                }
            };
            waiting = { id, resolve, reject, late, put };
            put();
        }));
        last = asked.catch(() => null);
        return asked;
    }

    function answered(text) {
        if (!waiting) {
            return;
        }
        if (!text) {
            waiting.put(); // gradio 6 empties a box soon after it has made it, and passes that on as a question
            return;
        }
        const answer = JSON.parse(text);
        const { id, resolve, reject, late } = waiting;
        waiting = null;
        clearTimeout(late);
        if (answer.id !== id) {
            reject({ said: notice("error", "No answer came: see whether the program still runs, and what it printed.") });
        } else {
            (answer.failed ? reject : resolve)(answer);
        }
    }

    function notice(kind, text) {
        const made = document.createElement("div");
        made.innerHTML = `<div class="ti-notice ti-${kind}" role="status"><b aria-hidden="true"></b><div></div></div>`;
        made.querySelector("b").textContent = { error: "✕", info: "i" }[kind];
        made.querySelector("div div").textContent = text;
        return made.innerHTML;
    }

    const through = async (bytes, stream) =>
        new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(stream)).arrayBuffer());

    async function packed(greys) {
        const bytes = await through(greys, new CompressionStream("deflate"));
        let text = "";
        for (let i = 0; i < bytes.length; i += 8192) {
            text += String.fromCharCode(...bytes.subarray(i, i + 8192));
        }
        return btoa(text);
    }

    const unpacked = (text) => through(Uint8Array.from(atob(text), (each) => each.charCodeAt(0)), new DecompressionStream("deflate"));

    window.tiTrainerAsking = { ask, answered, notice, packed, unpacked };
})();
