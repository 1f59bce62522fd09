//! A folder of class folders, as torchvision's `ImageFolder` reads them.

use crate::error::Result;
use crate::import::entry::{Entry, ImageImporter, ImageRequest, Importer};
use crate::import::image_set::{ImageSet, list_classes};
use crate::import::inputs::list_class_folders;

pub(super) const ENTRY: Entry = Entry {
    name: "imagefolder",
    about: "A folder of folders, one a class, of .jpg, .jpeg and .png files",
    source: "Folder that holds a folder for each class; nothing in it is changed. Classes are numbered by sorted names",
    published: None,
    importer: Importer::Images(ImageImporter {
        several_sources: false,
        split_folders: false,
        options: &[],
        find: find_images,
    }),
};

fn find_images(request: &ImageRequest) -> Result<Vec<ImageSet>> {
    let folder = request.source_folder()?;
    let classes = list_class_folders(folder)?;
    let names = classes.inputs.iter().map(|class| class.name.clone()).collect();
    let name = folder.file_name().map_or("images".into(), |name| name.to_string_lossy().into_owned());
    Ok(vec![list_classes(folder, name, request.split_name(), names, classes)?])
}
