// Requests of the Paint masks panel to the server, one at a time, through a hidden text box whose changes gradio sends.
// Masks are sent as deflated gray levels in base64: browsers with fingerprint protection alter pixels read from images.
(() => {
    const [SHORT_MS, LONG_MS] = [60000, 1800000]; // timeouts; a request that needs the model may have to wait for it
    let pending = null;
    let last = Promise.resolve();
    let count = 0;

    const root = () => document.querySelector("gradio-app")?.shadowRoot ?? document;

    // Resolves to the answer; rejects with an object that has a notice in `message`. `long`: the request needs the model.
    function send(request, long = false) {
        const sent = last.then(() => new Promise((resolve, reject) => {
            const id = `${Date.now()}-${++count}`;
            const timer = setTimeout(() => answered("{}"), long ? LONG_MS : SHORT_MS);
            const put = () => {
                const name = long ? "request_long" : "request";
                const box = root().querySelector(`#ti_trainer_masks_${name} :is(textarea, input)`);
                if (!box.value.includes(id)) {
                    box.value = JSON.stringify({ ...request, id });
                    box.dispatchEvent(new Event("input", { bubbles: true }));
                }
            };
            pending = { id, resolve, reject, timer, put };
            put();
        }));
        last = sent.catch(() => null);
        return sent;
    }

    function answered(text) {
        if (!pending) {
            return;
        }
        if (!text) {
            pending.put(); // gradio 6 clears a text box soon after creating it, and sends that as a change
            return;
        }
        const answer = JSON.parse(text);
        const { id, resolve, reject, timer } = pending;
        pending = null;
        clearTimeout(timer);
        if (answer.id !== id) {
            reject({ message: notice("error", "The server did not answer. Check that it is still running, and its log.") });
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

    window.tiTrainerRequests = { send, answered, notice, packed, unpacked };
})();
