// Polls the server while our page or the WebUI's embedding cards are visible: every second during a job, else every five;
// less often if the server says so, because many pages are open.
// Asks a cheap route first: it sends what changes with every step, see ti_trainer_live.js, and the version of everything else.
// Clicks a hidden button to update the page if that is new. Every answer is a new text that ends with the version.
(() => {
    const ACTIVE = ["waiting", "loading", "training", "working", "comparing", "pausing", "stopping"];
    const [BUSY_MS, IDLE_MS, TIMEOUT_MS, FIRST_TIMEOUT_MS] = [1000, 5000, 15000, 3000];
    const CARDS = ["#txt2img_textual_inversion", "#img2img_textual_inversion"];
    let previous = null; // the answer at the time of the click; null: no answer is expected
    let polledAt = -Infinity;
    let fetching = false;
    let busyMs = BUSY_MS; // longer where many pages are open
    let route = "./ti_trainer/status"; // "" if the host has none

    const root = () => document.querySelector("gradio-app")?.shadowRoot ?? document;
    const visible = (element) => document.visibilityState === "visible" && element?.getClientRects().length > 0;

    function tick() {
        const button = root().querySelector("#ti_trainer_poll");
        const page = button?.closest(".ti-trainer");
        const answer = page?.querySelector("#ti_trainer_answer textarea, #ti_trainer_answer input");
        if (!answer || fetching || !(visible(page) || CARDS.some((id) => visible(root().querySelector(id))))) {
            return;
        }
        // A click before gradio has attached its listeners is lost, so the first timeout is short.
        const timeout = answer.value ? TIMEOUT_MS : FIRST_TIMEOUT_MS;
        const waited = performance.now() - polledAt;
        if (previous === answer.value && waited < timeout) {
            return;
        }
        if (previous !== null && previous !== answer.value) {
            window.tiTrainerLive.forget(); // the page has been updated
        }
        previous = null;
        const busy = [...page.querySelectorAll("[data-status]")].some((each) => ACTIVE.includes(each.dataset.status));
        if (waited >= (busy ? busyMs : Math.max(IDLE_MS, busyMs))) {
            const forced = polledAt === -Infinity;
            polledAt = performance.now();
            const update = () => {
                previous = answer.value;
                button.click();
            };
            if (forced || !route || !versionIn(answer.value)) {
                update();
            } else {
                fetching = true;
                updateIfNew(versionIn(answer.value), update).finally(() => {
                    fetching = false;
                });
            }
        }
    }

    const versionIn = (answer) => /"version": "([^"]+)"\}$/.exec(answer)?.[1];

    // Updates unless the route has the same version; does so too if there is no answer.
    async function updateIfNew(version, update) {
        const answer = await fetch(route + window.tiTrainerLive.query(), { cache: "no-store" }).catch(() => null);
        if (answer?.ok) {
            const told = await answer.json();
            busyMs = BUSY_MS * (told.every ?? 1);
            window.tiTrainerLive.show(told);
            // What follows the - is the version of what the route sends, which it does not to clients without a password.
            const [known, found] = [version, told.version].map((each) => (told.html ? each.split("-")[0] : each));
            if (known === found) {
                return;
            }
        }
        if (answer && !answer.ok) {
            route = "";
        }
        update();
    }

    // Updates the page at once, since something was started.
    window.tiTrainerRefresh = () => {
        polledAt = -Infinity;
    };

    // Selects one of our tabs by its English label, since gradio's own ways differ from version to version.
    window.tiTrainerShow = (label) => {
        const places = [".tab-nav button", "[role=tab]", ".overflow-dropdown button"]; // gradio 3; 6; 6 on narrow screens
        const buttons = root().querySelectorAll(places.map((place) => `#ti_trainer_tabs ${place}`).join());
        const shown = [label, window.localization?.[label]]; // by the WebUI or ti_trainer_language.js
        [...buttons].find((button) => shown.includes(button.textContent.trim()))?.click();
    };

    setInterval(tick, 200);
})();
