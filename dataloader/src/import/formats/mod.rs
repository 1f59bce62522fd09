//! File formats of published data sets.

pub(super) mod devkit;
pub(super) mod idx;
pub(super) mod mat;
pub(super) mod mnist;
