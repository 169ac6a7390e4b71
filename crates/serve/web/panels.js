// The list of conversations at the left and the settings at the right: open or not.
//
// On a wide screen they stand beside the conversation, and the page remembers whether the list is shown. On a narrow one
// they lie over it: what is below cannot be reached until they are closed, and they always begin closed.

import { byId } from "./dom.js";

// As in style.css.
const NARROW = matchMedia("(max-width: 760px)");

/** `changed()`: the settings were opened. */
export class Panels {
    #preferences;
    #save;
    #changed;
    #sidebarOverlay = false;

    constructor(preferences, save, changed) {
        this.#preferences = preferences;
        this.#save = save;
        this.#changed = changed;
        byId("sidebar-open").addEventListener("click", () => this.showSidebar(true));
        byId("sidebar-close").addEventListener("click", () => this.showSidebar(false));
        byId("sidebar-shade").addEventListener("click", () => this.showSidebar(false));
        byId("settings-open").addEventListener("click", () => this.showSettings(byId("settings").hidden));
        byId("settings-close").addEventListener("click", () => this.showSettings(false));
        NARROW.addEventListener("change", () => this.#draw());
        this.#draw();
    }

    get narrow() {
        return NARROW.matches;
    }

    get sidebarShown() {
        return NARROW.matches ? this.#sidebarOverlay : this.#preferences.sidebar !== false;
    }

    showSidebar(open) {
        if (NARROW.matches) {
            this.#sidebarOverlay = open;
        } else {
            this.#preferences.sidebar = open;
            this.#save();
        }
        this.#draw();
        byId(open ? "sidebar-close" : "sidebar-open").focus();
    }

    get settingsShown() {
        return !byId("settings").hidden;
    }

    showSettings(open) {
        byId("settings").hidden = !open;
        this.#draw();
        if (open) this.#changed();
        byId(open ? "settings-close" : "settings-open").focus();
    }

    /** A conversation was chosen: on a narrow screen it should be seen. */
    uncover() {
        this.#sidebarOverlay = false;
        if (NARROW.matches) byId("settings").hidden = true;
        this.#draw();
    }

    /** Closes what lies over the page, or has the focus: true if there was something. */
    escape() {
        const within = (id) => NARROW.matches || byId(id).contains(document.activeElement);
        if (this.settingsShown && within("settings")) {
            this.showSettings(false);
            return true;
        }
        if (this.sidebarShown && NARROW.matches) {
            this.showSidebar(false);
            return true;
        }
        return false;
    }

    #draw() {
        const list = this.sidebarShown;
        const settings = this.settingsShown;
        document.body.dataset.sidebar = list ? "open" : "closed";
        byId("sidebar-open").setAttribute("aria-expanded", String(list));
        byId("settings-open").setAttribute("aria-expanded", String(settings));
        byId("main").inert = NARROW.matches && (list || settings);
        byId("sidebar").inert = !list || (NARROW.matches && settings);
    }
}
