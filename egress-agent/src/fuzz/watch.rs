//! What an API server sends: a line for each watch event, or a whole list, of the resource that the
//! first byte chooses.

use crate::source::kubernetes;

pub fn run(data: &[u8]) {
    let Some((choice, text)) = data.split_first() else {
        return;
    };
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    super::objects::of_objects(&kubernetes::fuzz::objects(*choice, text));
}
