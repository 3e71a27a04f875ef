// Acts on news: takes away refusals whose reason is over, and makes the WebUI's cards of new embeddings.
// Knows of the page what ti_trainer.js knows, and of the WebUI where its cards are, which other hosts may lack.
(() => {
    const ACTIVE = ["waiting", "loading", "training", "pausing", "stopping"];
    const heard = new WeakMap(); // a refusal -> the answer that was there when we saw it first
    const shown = {}; // a tab and an embedding -> when that was written to, as its card shows it

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

    function makeCards(page) {
        const written = JSON.parse(page.querySelector("[data-changes]")?.dataset.changes || "{}");
        for (const tab of ["txt2img", "img2img"]) {
            const cards = root().querySelector(`#${tab}_textual_inversion_cards`);
            for (const [name, when] of Object.entries(cards ? written : {})) {
                if (shown[`${tab} ${name}`] !== when) {
                    shown[`${tab} ${name}`] = when;
                    makeCard(tab, name).catch(() => {}); // there is the WebUI's own Refresh
                }
            }
        }
    }

    async function makeCard(tab, name) {
        const asked = new URLSearchParams({ page: "textual inversion", tabname: tab, name });
        const answer = await fetch(`./sd_extra_networks/get-single-card?${asked}`);
        const made = document.createElement("div");
        made.innerHTML = (await answer.json()).html;
        const cards = root().querySelector(`#${tab}_textual_inversion_cards`);
        const old = [...cards.querySelectorAll(".card")].find((each) => each.dataset.name === name);
        if (old) {
            old.replaceWith(made.firstElementChild);
        } else {
            cards.append(made.firstElementChild);
        }
        window.applyExtraNetworkFilter?.(`${tab}_textual_inversion`); // sorts them, too
    }

    setInterval(() => {
        const page = root().querySelector(".ti-trainer");
        if (page) {
            takeAway(page);
            makeCards(page);
        }
    }, 500);
})();
