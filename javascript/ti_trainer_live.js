// Shows what the status route sends of a job: HTML in the elements data-ti-live="NAME", and the loss curve, to whose paths,
// data-ti-grows="NAME", new steps are appended. gradio knows nothing of it: what it makes anew is filled again.
(() => {
    const CURVE = "losses";
    let shown = {}; // by name: a node with the content, and its number
    let numbers = 0;
    let at = ""; // what the next answer is to begin from

    const root = () => document.querySelector("gradio-app")?.shadowRoot ?? document;
    const places = (name) => [...root().querySelectorAll(`[data-ti-live="${name}"]`)];

    function replace(name, html) {
        const content = document.createElement("div");
        content.innerHTML = html;
        numbers += 1;
        shown[name] = { content, number: String(numbers) };
    }

    function grow(content, more) {
        for (const [name, text] of Object.entries(more)) {
            const grown = content.querySelector(`[data-ti-grows="${name}"]`);
            if (grown?.tagName === "path") {
                grown.setAttribute("d", grown.getAttribute("d") + text);
            } else {
                grown?.insertAdjacentHTML("beforeend", text);
            }
        }
    }

    function fill() {
        for (const [name, { content, number }] of Object.entries(shown)) {
            for (const place of places(name).filter((each) => each.dataset.tiNumber !== number)) {
                place.replaceChildren(...content.cloneNode(true).childNodes);
                place.dataset.tiNumber = number;
            }
        }
    }

    window.tiTrainerLive = {
        query: () => `?since=${encodeURIComponent(at)}`,

        // Takes an answer of the route.
        show({ at: now, html, curve }) {
            at = now ?? "";
            Object.entries(html ?? {}).forEach((each) => replace(...each));
            if (curve?.svg) {
                replace(CURVE, curve.svg);
            }
            fill();
            if (curve?.more && shown[CURVE]) {
                [shown[CURVE].content, ...places(CURVE)].forEach((each) => grow(each, curve.more));
            }
        },

        // gradio has shown everything as it is now.
        forget() {
            [shown, at] = [{}, ""];
        },
    };

    setInterval(fill, 200);
})();
