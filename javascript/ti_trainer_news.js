// Acts on news: takes away refusals whose reason is over, and has the WebUI make its cards of embeddings anew.
// Knows of the page what ti_trainer.js knows, and ids of the WebUI's own buttons, which other hosts may lack.
(() => {
    const ACTIVE = ["waiting", "loading", "training", "pausing", "stopping"];
    const REFRESH = ["txt2img", "img2img"].map((tab) => `#${tab}_textual_inversion_extra_refresh_internal`);
    const heard = new WeakMap(); // a refusal -> the answer that was there when we saw it first
    let known = "0"; // how often the embeddings folder was written to when the cards were made

    const root = () => document.querySelector("gradio-app")?.shadowRoot ?? document;

    // Not before news that is younger than the refusal: the page may not have heard yet of what began elsewhere.
    function takeAway(page) {
        const answer = page.querySelector("#ti_trainer_answer textarea, #ti_trainer_answer input")?.value;
        const status = page.querySelector("#ti_trainer_progress [data-status]")?.dataset.status;
        for (const each of page.querySelectorAll("[data-busy]")) {
            if (!heard.has(each)) {
                heard.set(each, answer);
                window.tiTrainerNow();
            } else if (heard.get(each) !== answer && status && !ACTIVE.includes(status)) {
                each.hidden = true; // and not removed: it is gradio's
            }
        }
    }

    function makeCardsAnew(page) {
        const changes = page.querySelector("[data-changes]")?.dataset.changes ?? known;
        const buttons = REFRESH.map((id) => root().querySelector(id)).filter((each) => each);
        if (changes !== known && buttons.length > 0) {
            known = changes;
            buttons.forEach((each) => each.click());
        }
    }

    setInterval(() => {
        const page = root().querySelector(".ti-trainer");
        if (page) {
            takeAway(page);
            makeCardsAnew(page);
        }
    }, 500);
})();
