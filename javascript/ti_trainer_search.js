// Filters the options of the Train panel: hides those whose label, help and name do not contain the words of the search field.
(() => {
    document.addEventListener("input", (event) => {
        const search = event.composedPath()[0].closest?.("#ti_trainer_options_search");
        const words = event.composedPath()[0].value?.toLowerCase().split(/\s+/).filter(Boolean);
        for (const section of search?.closest("#ti_trainer_all_options").querySelectorAll(".ti-section") ?? []) {
            const fields = [...section.querySelectorAll(".ti-field")];
            const title = section.querySelector(".ti-section-title").textContent.toLowerCase();
            for (const field of fields) {
                const names = [...field.querySelectorAll("[id^=ti_trainer_train_]")].map((each) => each.id.slice(17)); // English
                const text = `${title} ${field.textContent.toLowerCase()} ${names.join(" ").replaceAll("_", " ")}`;
                field.toggleAttribute("data-left-out", !words.every((word) => text.includes(word)));
            }
            section.toggleAttribute("data-left-out", fields.every((field) => field.hasAttribute("data-left-out")));
        }
    });
})();
