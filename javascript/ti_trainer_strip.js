// Fills the Train form once the page is loaded. The status strip: stays in view while something runs, and after that until its result was looked at.
// Buttons in our HTML: data-ti-show="TAB" shows one of our tabs, with data-ti-at="SELECTOR" at that place, with
// data-ti-inner="TAB" a tab inside of it, where the button data-ti-then="ELEM_ID" is pressed; data-ti-press="ELEM_ID" presses one of gradio's buttons; data-ti-ask="ELEM_ID" puts data-ti-value into a text box.
(() => {
    const ACTIVE = ["waiting", "loading", "training", "working", "comparing", "pausing", "stopping", "paused"];
    const NO_RUN = "none"; // of preprocessing and comparisons, whose results are on their own tabs
    let asked = false;
    let followed = null; // the run that was seen active, and whose end has not been looked at

    const root = () => document.querySelector("gradio-app")?.shadowRoot ?? document;

    // Once an answer has arrived, since a click before gradio has attached its listeners would be lost.
    function fillForm() {
        const [answer, filled] = ["answer", "filled"].map((name) =>
            root().querySelector(`#ti_trainer_${name} :is(textarea, input)`));
        if (answer?.value && filled && !filled.value && !asked) {
            asked = true;
            root().querySelector("#ti_trainer_fill")?.click();
        }
    }

    function tick() {
        fillForm();
        const strip = root().querySelector("#ti_trainer_strip");
        const status = strip?.querySelector("[data-status]");
        if (!status) {
            return;
        }
        if (ACTIVE.includes(status.dataset.status) && status.dataset.run !== NO_RUN) {
            followed = status.dataset.run;
        }
        const stays = ACTIVE.includes(status.dataset.status) || followed !== null;
        strip.toggleAttribute("data-stays", stays);
    }

    document.addEventListener("click", (event) => {
        const button = event.composedPath()[0].closest?.("[data-ti-show], [data-ti-press], [data-ti-ask]");
        if (button?.dataset.tiAsk) {
            const box = root().querySelector(`#${button.dataset.tiAsk} :is(textarea, input)`);
            box.value = `${button.dataset.tiValue} ${Date.now()}`; // the number makes a repeated request another text
            box.dispatchEvent(new Event("input", { bubbles: true }));
        } else if (button?.dataset.tiPress) {
            root().querySelector(`#${button.dataset.tiPress}`)?.click();
        } else if (button) {
            followed = null;
            window.tiTrainerShow(button.dataset.tiShow);
            const target = root().querySelector(button.dataset.tiAt || "#ti_trainer_tabs");
            setTimeout(() => target?.scrollIntoView({ block: "start" }), 100); // the tab is not shown yet
            if (button.dataset.tiInner) { // gradio 6 makes the content of a tab when it is opened
                setTimeout(() => window.tiTrainerShow(button.dataset.tiInner), 250);
                setTimeout(() => root().querySelector(`#${button.dataset.tiThen}`)?.click(), 600);
            }
        }
    });

    setInterval(tick, 250);
})();
