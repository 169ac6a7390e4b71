//! The interface as it is described, pinned: a change of it is a change of what clients see.

#[test]
fn the_interface_is_what_it_was() {
    let document = serde_json::to_value(wudao_serve::openapi()).unwrap();
    // The version is not part of it.
    let mut document = document;
    document["info"]["version"] = "0".into();
    // Nor is the order in which the code happens to name its parts.
    document.sort_all_objects();
    insta::assert_snapshot!(serde_json::to_string_pretty(&document).unwrap());
}
