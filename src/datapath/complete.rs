//! Completes frames in software for receivers that do not: fills in checksums, cuts large frames.

use crate::packet::{FRAME_MAX, checksum, segment};

use super::frame::FrameView;

/// Completes frames.
#[derive(Debug)]
pub(super) struct Completer {
    /// Room for the longest frame there is. Pages not touched cost nothing.
    scratch: Box<[u8]>,
    /// The identification of the next datagram that is cut into IPv6 fragments. RFC 8200, 4.5, asks
    /// for one not used recently for the same addresses; a counter is enough.
    identification: u32,
}

/// A completer without room, in place of another that is in use.
impl Default for Completer {
    fn default() -> Self {
        Self { scratch: Box::default(), identification: 0 }
    }
}

impl Completer {
    pub fn new() -> Self {
        Self { scratch: vec![0; FRAME_MAX].into_boxed_slice(), identification: 0 }
    }

    /// Give `each` the complete frames that `frame` stands for, in order: at least one. The frame
    /// is at most [`FRAME_MAX`] bytes long.
    ///
    /// The frame is gathered first. Checksums cover all of it, and must match the bytes that are
    /// sent even if the guest changes its memory meanwhile.
    #[inline(never)]
    pub fn complete(&mut self, frame: &FrameView<'_>, mut each: impl FnMut(&FrameView<'_>)) {
        let offload = *frame.offload();
        let bytes = frame.copy_to(&mut self.scratch);
        match (offload.segmentation, offload.checksum) {
            (Some(segmentation), Some(checksum)) => {
                self.identification = self.identification.wrapping_add(1);
                let id = self.identification;
                segment(bytes, &segmentation, checksum, id, |headers, payload| {
                    each(&FrameView::of_pieces(headers, &[payload]));
                });
            }
            (_, Some(checksum)) => {
                let fits = checksum::complete(bytes, checksum);
                debug_assert!(fits, "checked when the header was read");
                each(&FrameView::whole(bytes));
            }
            (_, None) => each(&FrameView::whole(bytes)),
        }
    }
}
