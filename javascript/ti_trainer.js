// Asks for news while our page is seen, or the WebUI's cards of embeddings, each second while a job runs, else each five:
// first a route that costs little whether there is any, then, by a click on a hidden button, what it is. Knows nothing of
// what comes back, but that every answer is another text, which ends with the mark that the route had then.
(() => {
    const ACTIVE = ["waiting", "loading", "training", "working", "pausing", "stopping"];
    const [BUSY_MS, IDLE_MS, PATIENCE_MS, FIRST_PATIENCE_MS] = [1000, 5000, 15000, 3000];
    const CARDS = ["#txt2img_textual_inversion", "#img2img_textual_inversion"];
    let asked = null; // the answer that was there when we asked; null: nobody waits for one
    let at = -Infinity;
    let asking = false; // the route
    let route = "./ti_trainer/status"; // "" where there is none

    const root = () => document.querySelector("gradio-app")?.shadowRoot ?? document;
    const seen = (element) => document.visibilityState === "visible" && element?.getClientRects().length > 0;

    function tick() {
        const button = root().querySelector("#ti_trainer_poll");
        const page = button?.closest(".ti-trainer");
        const answer = page?.querySelector("#ti_trainer_answer textarea, #ti_trainer_answer input");
        if (!answer || asking || !(seen(page) || CARDS.some((id) => seen(root().querySelector(id))))) {
            return;
        }
        // A click before gradio listens is lost, so less patience until there was a first answer.
        const patience = answer.value ? PATIENCE_MS : FIRST_PATIENCE_MS;
        const waited = performance.now() - at;
        if (asked === answer.value && waited < patience) {
            return;
        }
        asked = null;
        const busy = [...page.querySelectorAll("[data-status]")].some((each) => ACTIVE.includes(each.dataset.status));
        if (waited >= (busy ? BUSY_MS : IDLE_MS)) {
            const forced = at === -Infinity;
            at = performance.now();
            if (forced || !route || !told(answer.value)) {
                asked = answer.value;
                button.click();
            } else {
                asking = true;
                unlessTold(told(answer.value), () => {
                    asked = answer.value;
                    button.click();
                }).finally(() => {
                    asking = false;
                });
            }
        }
    }

    const told = (answer) => /"mark": "([^"]+)"\}$/.exec(answer)?.[1];

    // Acts where the route has another mark, or is no help.
    async function unlessTold(mark, act) {
        const answer = await fetch(route, { cache: "no-store" }).catch(() => null);
        if (answer?.ok && (await answer.json()).mark === mark) {
            return;
        }
        if (answer && !answer.ok) {
            route = "";
        }
        act();
    }

    // Asks at once: something was started.
    window.tiTrainerNow = () => {
        at = -Infinity;
    };

    // Brings one of our tabs to the front, by its words: gradio's own ways differ from version to version.
    window.tiTrainerShow = (words) => {
        const places = [".tab-nav button", "[role=tab]", ".overflow-dropdown button"]; // gradio 3; 6; 6 on a phone
        const buttons = root().querySelectorAll(places.map((place) => `#ti_trainer_tabs ${place}`).join());
        [...buttons].find((button) => button.textContent.trim() === words)?.click();
    };

    setInterval(tick, 200);
})();
