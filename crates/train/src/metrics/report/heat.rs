//! The load of experts over steps as an image: one column a stretch of steps, one row an expert.
//!
//! A cell's colour says how its load compares with an equal share: orange above, blue below, nothing at all at the share
//! itself, so that a healthy router is a quiet picture on any background. The image is a PNG with a palette of
//! transparencies, packed into the page; as rectangles it would be a hundred times as long.

use super::axis::{Axis, Format};
use super::history::Layer;
use super::html::label;
use flate2::write::ZlibEncoder;
use flate2::{Compression, Crc};
use std::fmt::Write as _;
use std::io::Write as _;

/// A load of so many equal shares, and more, has the full colour.
pub const FULL: f64 = 3.0;
/// Colours of too much and too little (Okabe and Ito 2008: told apart by colour-blind readers too).
const OVER: [u8; 3] = [0xd5, 0x5e, 0x00];
const UNDER: [u8; 3] = [0x00, 0x72, 0xb2];
/// Shades to either side of an equal share.
const SHADES: usize = 24;

/// The picture of a router's load, with axes.
pub fn svg(layer: usize, course: &Layer) -> String {
    let (columns, [first, last]) = course.load.means();
    let (width, height) = (340.0, (6.0 * course.experts as f64).clamp(90.0, 150.0));
    let (left, right, top, bottom) = (34.0, width - 8.0, 6.0, height + 6.0);
    let x = Axis { low: first as f64, high: last.max(first + 1) as f64, from: left, to: right, log: false };
    let image = base64(&png(&columns, course.experts));
    let mut svg = format!(
        "<svg viewBox=\"0 0 {width} {}\" role=\"img\" aria-label=\"{}\">\
         <image x=\"{left}\" y=\"{top}\" width=\"{}\" height=\"{height}\" preserveAspectRatio=\"none\" \
         href=\"data:image/png;base64,{image}\"/>\
         <rect class=\"frame\" x=\"{left}\" y=\"{top}\" width=\"{}\" height=\"{height}\"/><g class=\"y\">",
        bottom + 22.0,
        label(format!("Load of the experts of layer {layer}"), format!("第 {layer} 层各专家的负载")).both(),
        right - left,
        right - left,
    );
    let row = height / course.experts.max(1) as f64;
    let _ = write!(svg, "<text x=\"{}\" y=\"{:.1}\">1</text>", left - 6.0, top + (0.5 * row).max(5.0) + 4.0);
    if course.experts > 1 {
        let at = bottom - (0.5 * row).max(5.0) + 4.0;
        let _ = write!(svg, "<text x=\"{}\" y=\"{at:.1}\">{}</text>", left - 6.0, course.experts);
    }
    svg.push_str("</g><g class=\"x\">");
    for (value, text) in x.marks(4, Format::Whole) {
        let at = x.at(value);
        let _ =
            write!(svg, "<path d=\"M{at:.1} {bottom}v4\"/><text x=\"{at:.1}\" y=\"{}\">{text}</text>", bottom + 17.0);
    }
    svg.push_str("</g></svg>");
    svg
}

/// Shade of a load: 0 is none at all, `SHADES` an equal share, `2·SHADES` the full colour of too much.
fn shade(load: f64, experts: usize) -> u8 {
    let shares = load * experts as f64;
    let way = if shares <= 1.0 { shares - 1.0 } else { (shares.ln() / FULL.ln()).min(1.0) };
    ((1.0 + way) * SHADES as f64).round() as u8
}

/// An image of the columns, one pixel a value.
fn png(columns: &[Vec<f64>], experts: usize) -> Vec<u8> {
    let (width, height) = (columns.len().max(1), experts.max(1));
    let mut pixels = Vec::with_capacity((width + 1) * height);
    for expert in 0..height {
        // Each row begins with the number of its filter: none.
        pixels.push(0);
        pixels.extend(columns.iter().map(|loads| shade(loads.get(expert).copied().unwrap_or(0.0), experts)));
        pixels.resize((width + 1) * (expert + 1), SHADES as u8);
    }
    let mut packed = ZlibEncoder::new(vec![], Compression::best());
    packed.write_all(&pixels).expect("a vector takes everything");
    let packed = packed.finish().expect("a vector takes everything");

    let mut palette = vec![];
    let mut alphas = vec![];
    for index in 0..=2 * SHADES {
        palette.extend(if index < SHADES { UNDER } else { OVER });
        alphas.push((255 * index.abs_diff(SHADES) / SHADES) as u8);
    }
    let mut out = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut header = vec![];
    header.extend((width as u32).to_be_bytes());
    header.extend((height as u32).to_be_bytes());
    // Eight bits a pixel, an index of the palette, and the only compression, filtering and order there are.
    header.extend([8, 3, 0, 0, 0]);
    for (kind, data) in
        [(b"IHDR", &header), (b"PLTE", &palette), (b"tRNS", &alphas), (b"IDAT", &packed), (b"IEND", &vec![])]
    {
        out.extend((data.len() as u32).to_be_bytes());
        let mut crc = Crc::new();
        crc.update(kind);
        crc.update(data);
        out.extend(kind);
        out.extend(data);
        out.extend(crc.sum().to_be_bytes());
    }
    out
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let digit = char::from(DIGITS[(bits >> (18 - 6 * i) & 63) as usize]);
            text.push(if i <= chunk.len() { digit } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn base64_is_that_of_rfc_4648() {
        let texts = ["", "f", "fo", "foo", "foob", "fooba", "foobar"].map(|t| base64(t.as_bytes()));
        assert_eq!(texts, ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"]);
    }

    #[test]
    fn shades_run_from_dead_to_overloaded() {
        assert_eq!([0.0, 0.25, 0.75, 1.0].map(|load| shade(load, 4)), [0, 24, 48, 48]);
        assert!(shade(0.2, 4) < 24 && shade(0.3, 4) > 24);
    }

    #[test]
    fn the_image_has_a_pixel_for_every_load() {
        let bytes = png(&[vec![0.0, 1.0], vec![0.5, 0.5], vec![]], 2);
        let mut chunks = std::collections::BTreeMap::new();
        let mut at = 8;
        while at < bytes.len() {
            let length = u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
            let body = &bytes[at + 4..at + 8 + length];
            let mut crc = Crc::new();
            crc.update(body);
            assert_eq!(crc.sum().to_be_bytes(), bytes[at + 8 + length..at + 12 + length]);
            chunks.insert(body[..4].to_vec(), body[4..].to_vec());
            at += 12 + length;
        }
        assert_eq!(chunks[&b"IHDR"[..]][..8], [0, 0, 0, 3, 0, 0, 0, 2]);
        assert_eq!(chunks[&b"PLTE"[..]].len(), 3 * chunks[&b"tRNS"[..]].len());
        let mut pixels = vec![];
        flate2::read::ZlibDecoder::new(&chunks[&b"IDAT"[..]][..]).read_to_end(&mut pixels).unwrap();
        // Two shares are ln 2 / ln 3 of the way to the full colour.
        assert_eq!(pixels, [0, 0, 24, 0, 0, 39, 24, 0]);
    }
}
