// Acts on updates of the page: hides refusals whose reason is over, and refreshes the WebUI's cards of trained embeddings,
// which other hosts may lack.
(() => {
    const ACTIVE = ["waiting", "loading", "training", "comparing", "pausing", "stopping"];
    const firstSeen = new WeakMap(); // a refusal -> the answer at the time it appeared
    const refreshed = {}; // a tab and an embedding -> the time stamp that its card shows

    const root = () => document.querySelector("gradio-app")?.shadowRoot ?? document;

    // Waits for an answer newer than the refusal: the run may have been started elsewhere, and not be shown here yet.
    function hideOutdated(page) {
        const answer = page.querySelector("#ti_trainer_answer textarea, #ti_trainer_answer input")?.value;
        const status = page.querySelector("#ti_trainer_progress [data-status]")?.dataset.status;
        for (const each of page.querySelectorAll("[data-busy]")) {
            if (!firstSeen.has(each)) {
                firstSeen.set(each, answer);
                window.tiTrainerRefresh();
            } else if (firstSeen.get(each) !== answer && status && !ACTIVE.includes(status)) {
                each.hidden = true; // not removed, since gradio owns the element
            }
        }
    }

    function refreshCards(page) {
        const written = JSON.parse(page.querySelector("[data-changes]")?.dataset.changes || "{}");
        for (const tab of ["txt2img", "img2img"]) {
            const cards = root().querySelector(`#${tab}_textual_inversion_cards`);
            for (const [name, when] of Object.entries(cards ? written : {})) {
                if (refreshed[`${tab} ${name}`] !== when) {
                    refreshed[`${tab} ${name}`] = when;
                    refreshCard(tab, name).catch(() => {}); // the WebUI's own Refresh button remains
                }
            }
        }
    }

    async function refreshCard(tab, name) {
        const query = new URLSearchParams({ page: "textual inversion", tabname: tab, name });
        const answer = await fetch(`./sd_extra_networks/get-single-card?${query}`);
        const made = document.createElement("div");
        made.innerHTML = (await answer.json()).html;
        const cards = root().querySelector(`#${tab}_textual_inversion_cards`);
        const old = [...cards.querySelectorAll(".card")].find((each) => each.dataset.name === name);
        if (old) {
            old.replaceWith(made.firstElementChild);
        } else {
            cards.append(made.firstElementChild);
        }
        window.applyExtraNetworkFilter?.(`${tab}_textual_inversion`); // also sorts them
    }

    setInterval(() => {
        const page = root().querySelector(".ti-trainer");
        if (page) {
            hideOutdated(page);
            refreshCards(page);
        }
    }, 500);
})();
