// Chromium for the tests: found, started, and watched for anything that a page should not do.

import { chromium } from "playwright-core";
import { Mock } from "./mock.js";

const ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
];

/** A server that is already running, to test instead of the mock. */
export const REAL = process.env.BASE_URL ? new URL(process.env.BASE_URL).href.replace(/\/?$/, "/") : null;

export const launch = () =>
    chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ARGUMENTS });

/**
 * A fresh browser profile with the page open in it, beside a mock of its own unless a real server is tested.
 * `complaints` gathers what no test wants: errors on the console, requests to elsewhere, breaches of the policy.
 */
export async function visit(browser, { context: options = {}, mock: prepare = () => {} } = {}) {
    const mock = REAL ? null : await Mock.start();
    if (mock) prepare(mock);
    const url = REAL ?? mock.url;
    const context = await browser.newContext({ locale: "en-GB", reducedMotion: "reduce", acceptDownloads: true, ...options });
    const complaints = [];
    // An answer that is an error also appears on the console; tests that provoke one say which.
    const expected = [];
    context.on("page", (page) => watch(page, url, complaints, expected));
    if (REAL && process.env.API_KEY) {
        await context.addInitScript((key) => {
            if (location.protocol !== "about:") sessionStorage.setItem("wudao-chat.key", key);
        }, process.env.API_KEY);
    }
    const page = await context.newPage();
    page.setDefaultTimeout(REAL ? 60_000 : 10_000);
    await page.goto(url);
    return {
        page, context, mock, url, complaints,
        expect: (pattern) => expected.push(pattern),
        async close() {
            await context.close();
            await mock?.close();
            return complaints;
        },
    };
}

function watch(page, url, complaints, expected) {
    const { origin } = new URL(url);
    page.on("console", (message) => {
        const text = message.text();
        const bad = ["error", "warning"].includes(message.type());
        if (bad && !expected.some((pattern) => pattern.test(text))) complaints.push(`console: ${text}`);
    });
    page.on("pageerror", (error) => complaints.push(`uncaught: ${error.stack ?? error}`));
    page.on("request", (request) => {
        const address = new URL(request.url());
        if (address.origin !== origin && address.protocol !== "blob:") complaints.push(`request: ${address}`);
    });
    page.on("dialog", (dialog) => {
        complaints.push(`dialog: ${dialog.message()}`);
        dialog.dismiss();
    });
}
